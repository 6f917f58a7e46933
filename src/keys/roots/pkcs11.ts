// Root keys in a hardware security module or smart card: `pkcs11:token=…;object=…?module-path=…`. The key stays there; a wrap is
// one AES-GCM call in the token, with what it is bound to as associated data. PIN from the file that pin-source= names, else
// KEYTURN_PKCS11_PIN or the file that KEYTURN_PKCS11_PIN_FILE names. The library runs in a process of its own.
import { createHash, randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { labelBytes } from '../../crypto/label.js';
import { uuidToBytes } from '../../crypto/uuid.js';
import { refused, unavailable } from './key-bytes.js';
import type { KeySelector, TokenRequest } from './pkcs11-messages.js';
import { createTokenProcess, type TokenProcess } from './pkcs11-process.js';
import { parsePkcs11Location, type Pkcs11Location } from './pkcs11-uri.js';
import { contextBytes, createProviderRootKey, type ProviderCipher } from './provider-root-key.js';
import { createRemoteCall, type RemoteCall } from './remote-call.js';
import type { RootKeyContext, RootKeyProvider } from './root-key.js';

const nonceBytes = 12;
const tagBytes = 16;
const blockBytes = 16;

/** By place of the token and of its PIN: its root keys share one login. */
const processes = new Map<string, TokenProcess>();

export const pkcs11RootKeyProvider: RootKeyProvider = {
  scheme: 'pkcs11',
  async open(location, context) {
    const place = parsePkcs11Location(location);
    const source = `pkcs11:${location}`;
    const token = processOf(place, source, context);
    const call = createRemoteCall({ ...context.timing, source });
    const key: KeySelector = { object: place.object, id: place.id };
    // Before a deadline begins that is meant for a call.
    await call(() => token.start());
    const name = await call((signal) =>
      token.ask({ verb: 'identify', key, block: identityBlock(context.cluster) }, signal),
    );
    if (name === undefined || name.length !== 2 * blockBytes)
      throw unavailable(source, 'the token did not identify its key');
    const cipher = createTokenCipher(token, call, key, source);
    return createProviderRootKey(`pkcs11:${name.toString('hex')}`, context.cluster, cipher);
  },
};

function processOf(place: Pkcs11Location, source: string, { env }: RootKeyContext): TokenProcess {
  const { KEYTURN_PKCS11_PIN: direct, ...others } = env;
  const pinFile = place.pinFile ?? (direct === undefined || direct === '' ? env['KEYTURN_PKCS11_PIN_FILE'] : undefined);
  const at = createHash('sha256')
    .update(JSON.stringify([place.modulePath, place.token, pinFile ?? direct, Object.entries(others)]))
    .digest('hex');
  const known = processes.get(at);
  if (known !== undefined) return known;
  const created = createTokenProcess({
    source,
    env: others,
    login: async () => ({
      modulePath: place.modulePath,
      token: place.token,
      pin: pinFile === undefined ? directPin(direct, source) : await readPin(pinFile, source),
    }),
  });
  processes.set(at, created);
  return created;
}

function directPin(pin: string | undefined, source: string): string {
  if (pin !== undefined && pin !== '') return pin;
  throw unavailable(
    source,
    'its PIN is not given; set KEYTURN_PKCS11_PIN_FILE or KEYTURN_PKCS11_PIN, or add pin-source=file:/PATH',
  );
}

/** At each login, so that a PIN may be changed. */
async function readPin(path: string, source: string): Promise<string> {
  let content: string;
  try {
    content = await readFile(path, 'utf8');
  } catch {
    throw unavailable(source, `the file with its PIN, ${path}, cannot be read`);
  }
  const pin = content.replace(/\r?\n$/, '');
  if (pin === '' || /[\r\n\0]/.test(pin))
    throw refused(source, `${path} must hold the PIN in one line and nothing else`);
  return pin;
}

function createTokenCipher(token: TokenProcess, call: RemoteCall, key: KeySelector, source: string): ProviderCipher {
  const ask = (request: TokenRequest): Promise<Buffer | undefined> => call((signal) => token.ask(request, signal));
  return {
    async encrypt(plaintext, context) {
      const nonce = randomBytes(nonceBytes);
      const sealed = await ask({ verb: 'encrypt', key, plaintext, nonce, associatedData: contextBytes(context) });
      if (sealed?.length !== plaintext.length + tagBytes)
        throw unavailable(source, 'the token answered encrypt without a ciphertext and a tag of 16 bytes');
      return Buffer.concat([nonce, sealed]);
    },
    async decrypt(ciphertext, context) {
      if (ciphertext.length < nonceBytes + tagBytes) return undefined;
      return ask({
        verb: 'decrypt',
        key,
        ciphertext: ciphertext.subarray(nonceBytes),
        nonce: ciphertext.subarray(0, nonceBytes),
        associatedData: contextBytes(context),
      });
    },
  };
}

/**
 * Two blocks that the token encrypts to tell its key apart. AES-GCM never encrypts such a block under this key: its counter, the
 * last four bytes, starts at 1 and would have to count to the end.
 */
function identityBlock(cluster: string): Buffer {
  const block = createHash('sha256').update(labelBytes('kek-fingerprint')).update(uuidToBytes(cluster)).digest();
  for (let end = blockBytes; end <= block.length; end += blockBytes) block.fill(0xff, end - 4, end);
  return block;
}
