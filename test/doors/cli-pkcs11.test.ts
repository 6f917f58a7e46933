// The whole story with a root key in a PKCS#11 token: the installed command line and library, a SoftHSM token, real PostgreSQL.
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import type { openKeyturn } from '../../src/index.js';
import { openKeyturnProcess, type KeyturnProcess } from '../cli/keyturn-process.js';
import { createTestDatabase, type TestDatabase } from '../support/database.js';
import { install, type Installed } from '../support/installed.js';
import { customerTable, shopConfig } from '../support/shop.js';
import { missingForSoftHsm, startSoftHsm, tokenPin, type SoftHsm } from '../support/softhsm.js';

// Each command is a process of its own.
vi.setConfig({ testTimeout: 120_000 });

const here = { pk: 1, scope: 'a' };

describe.skipIf(missingForSoftHsm() !== undefined)('a root key in a token', () => {
  let folder: string;
  let hsm: SoftHsm;
  let database: TestDatabase;
  let installed: Installed;
  let keyturn: KeyturnProcess;
  let inToken: string;
  let inFile: string;
  const environment = (): Record<string, string> => ({
    DATABASE_URL: database.url,
    LOG_LEVEL: 'silent',
    ...hsm.env,
  });
  const configOf = (root: string): typeof shopConfig => ({ ...shopConfig, keyrings: { customers: { root } } });

  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'keyturn-roots-'));
    writeFileSync(join(folder, 'root.key'), randomBytes(32), { mode: 0o600 });
    inFile = `file:${join(folder, 'root.key')}`;
    hsm = startSoftHsm();
    hsm.addKey('root');
    inToken = `${hsm.uri('root')}&pin-source=file:${hsm.pinFile}`;
    database = await createTestDatabase();
    await database.pool.query(customerTable);
    installed = install({ pkcs11: 'as it is' });
    keyturn = openKeyturnProcess({ environment }, configOf(inToken), installed.cli);
  });
  afterAll(async () => {
    keyturn.remove();
    installed.remove();
    await database.drop();
    hsm.close();
    rmSync(folder, { recursive: true, force: true });
  });

  async function inApplication<T>(
    root: string,
    work: (email: ReturnType<Awaited<ReturnType<typeof openKeyturn>>['column']>) => Promise<T>,
  ): Promise<T> {
    const library = await installed.load<{ openKeyturn: typeof openKeyturn }>('index.js');
    const opened = await library.openKeyturn({ config: configOf(root), environment: environment() });
    try {
      return await work(opened.column('public.customer', 'email'));
    } finally {
      await opened.close();
    }
  }

  test('init, encrypting, a new data key, and the root key moved to a file and back: every value stays readable, no PIN is printed', async () => {
    expect(await keyturn.run('init')).toMatchObject({ code: 0 });
    const stored = await inApplication(inToken, (email) => email.encrypt(here, 'a@example.org'));
    expect(await keyturn.run('key', 'rotate', '--reason', 'yearly')).toMatchObject({ code: 0 });
    const readable = { plaintext: 'a@example.org', stale: true };
    expect(await inApplication(inToken, (email) => email.decrypt(here, stored))).toMatchObject(readable);

    for (const next of [inFile, inToken]) {
      expect(await keyturn.json('root', 'rotate', '--to', next, '--reason', 'another place')).toMatchObject({
        code: 0,
        // Three that encrypt values, the standby among them, and one that seals the record.
        object: { data_keys: 4 },
      });
      expect(await inApplication(next, (email) => email.decrypt(here, stored))).toMatchObject(readable);
    }
    expect(keyturn.printed()).not.toContain(tokenPin);
  });
});
