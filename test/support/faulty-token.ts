// A token that misbehaves when told to: graphene-pk11 on SoftHSM, whose AES-GCM calls are counted and fail with a CKR code, or
// never return, as a file says that the test writes and the process of the token reads.
import { appendFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { FakeAnswer, FakeRequest, FaultyServer } from './faulty-server.js';
import { bindingFolder } from './softhsm.js';

export interface FaultyToken extends FaultyServer {
  /** The text of the module that stands in the place of graphene-pk11. */
  readonly module: string;
}

export function ckr(code: string): FakeAnswer {
  return { status: 0, body: { ckr: code } };
}

export function startFaultyToken(): FaultyToken {
  const folder = mkdtempSync(join(tmpdir(), 'keyturn-faults-'));
  const [calls, faults] = [join(folder, 'calls'), join(folder, 'faults.json')];
  appendFileSync(calls, '');
  writeFileSync(faults, '{}');
  return {
    url: folder,
    module: `const fs = require('node:fs');
const graphene = require(${JSON.stringify(join(bindingFolder, 'graphene-pk11'))});
for (const name of ['createCipher', 'createDecipher']) {
  const real = graphene.Session.prototype[name];
  graphene.Session.prototype[name] = function (mechanism, key) {
    if (mechanism.name !== 'AES_GCM') return real.call(this, mechanism, key);
    fs.appendFileSync(${JSON.stringify(calls)}, '.');
    const fault = JSON.parse(fs.readFileSync(${JSON.stringify(faults)}, 'utf8'));
    if (!(fault.left > 0)) return real.call(this, mechanism, key);
    fs.writeFileSync(${JSON.stringify(faults)}, JSON.stringify({ ...fault, left: fault.left - 1 }));
    if (fault.ckr === 'hang') Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
    throw new Error(fault.ckr + ':1 at C_EncryptInit: as the test wants it');
  };
}
module.exports = graphene;
`,
    get requests(): readonly FakeRequest[] {
      const request: FakeRequest = { path: '', headers: {}, body: {} };
      return Array.from(readFileSync(calls, 'utf8'), () => request);
    },
    fail(fault, times = 1_000_000) {
      const code = fault === 'reset' ? 'CKR_DEVICE_REMOVED' : typeof fault === 'object' ? fault.body : fault;
      const named = typeof code === 'object' ? code : { ckr: code };
      writeFileSync(faults, JSON.stringify({ ...named, left: fault === undefined ? 0 : times }));
    },
    async close() {
      rmSync(folder, { recursive: true, force: true });
    },
  };
}
