// The child process that holds a PKCS#11 library: its calls block, and a library may crash, so neither happens in the process
// that asks. One token, one login, requests in turn; it ends with its parent.
import type {
  KeySelector,
  NumberedAnswer,
  NumberedRequest,
  TokenAnswer,
  TokenFailure,
  TokenLogin,
  TokenRequest,
} from './pkcs11-messages.js';

/** What is used of graphene-pk11, an optional peer whose own types are not there where it is not installed. */
interface Graphene {
  readonly Module: { load(path: string): CryptokiModule };
  readonly SessionFlag: { readonly SERIAL_SESSION: number };
  readonly ObjectClass: { readonly SECRET_KEY: number };
  readonly KeyType: { readonly AES: number };
  readonly AesGcm240Params: new (iv: Buffer, associatedData: Buffer, tagBits: number) => object;
}
interface CryptokiModule {
  initialize(): void;
  getSlots(tokenPresent: boolean): { readonly length: number; items(index: number): Slot };
}
interface Slot {
  getToken(): {
    readonly label: string;
    readonly serialNumber: string;
    readonly manufacturerID: string;
    readonly model: string;
    readonly flags: number;
  };
  open(flags: number): Session;
}
interface Session {
  login(pin: string): void;
  close(): void;
  find(template: object): { readonly length: number; items(index: number): TokenObject };
  createCipher(mechanism: object, key: object): { once(data: Buffer, into: Buffer): Buffer };
  createDecipher(mechanism: object, key: object): { once(data: Buffer, into: Buffer): Buffer };
}
interface TokenObject {
  getAttribute(template: Record<string, null>): Readonly<Record<string, unknown>>;
  toType(): object;
}

class TokenFailed extends Error {
  readonly failure: TokenFailure;

  constructor(kind: TokenFailure['kind'], reason: string) {
    super(kind);
    this.failure = { kind, reason };
  }
}

const rootKeyBytes = 32;
const tagBytes = 16;
/** CKF_USER_PIN_FINAL_TRY and CKF_USER_PIN_LOCKED. */
const finalTry = 0x20000;
const pinLocked = 0x40000;

let graphene: Graphene | undefined;
let library: CryptokiModule | undefined;
let session: Session | undefined;
let loginDone: TokenLogin | undefined;

async function login(wanted: TokenLogin): Promise<Buffer> {
  loginDone = undefined;
  graphene ??= await loadGraphene();
  library ??= loadLibrary(graphene, wanted.modulePath);
  session?.close();
  session = undefined;
  const slot = findSlot(library, wanted);
  const { flags } = slot.getToken();
  if ((flags & pinLocked) !== 0)
    throw new TokenFailed('refused', 'its PIN is locked; the security officer can unlock it');
  if ((flags & finalTry) !== 0)
    throw new TokenFailed(
      'refused',
      'one wrong PIN more would lock it, so none is tried; log in once with the right PIN by the tool of its maker',
    );
  const opened = slot.open(graphene.SessionFlag.SERIAL_SESSION);
  try {
    opened.login(wanted.pin);
  } catch (error) {
    if (codeOf(error) !== 'CKR_USER_ALREADY_LOGGED_IN') {
      opened.close();
      throw error;
    }
  }
  session = opened;
  loginDone = wanted;
  return Buffer.alloc(0);
}

async function loadGraphene(): Promise<Graphene> {
  // Not a literal, which the compiler would look for: the package is an optional peer.
  const name = 'graphene-pk11';
  try {
    const loaded = (await import(name)) as { default?: Graphene } & Graphene;
    return loaded.default ?? loaded;
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : undefined;
    if (code === 'ERR_MODULE_NOT_FOUND' || code === 'MODULE_NOT_FOUND')
      throw new TokenFailed(
        'package_missing',
        'it needs the package graphene-pk11, which is not installed, or not compiled; run: npm install graphene-pk11',
      );
    throw error;
  }
}

function loadLibrary(binding: Graphene, path: string): CryptokiModule {
  let loaded: CryptokiModule;
  try {
    loaded = binding.Module.load(path);
  } catch {
    throw new TokenFailed('away', `the library ${path} cannot be loaded; look at module-path=`);
  }
  loaded.initialize();
  return loaded;
}

function findSlot(from: CryptokiModule, { token: wanted }: TokenLogin): Slot {
  const slots = from.getSlots(true);
  const matching = Array.from({ length: slots.length }, (_, at) => slots.items(at)).filter((slot) => {
    const token = slot.getToken();
    const has = {
      token: token.label,
      serial: token.serialNumber,
      manufacturer: token.manufacturerID,
      model: token.model,
    };
    return (['token', 'serial', 'manufacturer', 'model'] as const).every(
      (name) => wanted[name] === undefined || has[name].replace(/[\0 ]+$/, '') === wanted[name],
    );
  });
  const [slot] = matching;
  if (slot === undefined)
    throw new TokenFailed('away', 'there is no such token; is it plugged in, its service running?');
  if (matching.length > 1)
    throw new TokenFailed('refused', `${matching.length} tokens match; add serial= to tell them apart`);
  return slot;
}

function findKey(binding: Graphene, opened: Session, { object, id }: KeySelector): TokenObject {
  const found = opened.find({
    class: binding.ObjectClass.SECRET_KEY,
    ...(object === undefined ? {} : { label: object }),
    ...(id === undefined ? {} : { id }),
  });
  if (found.length === 0) throw new TokenFailed('refused', 'the token has no such secret key');
  if (found.length > 1)
    throw new TokenFailed('refused', `${found.length} keys of the token match; add id= to tell them apart`);
  return found.items(0);
}

/** A root key of which the bytes can leave the token is no better than a file. */
function demandStrong(binding: Graphene, key: TokenObject): void {
  const { keyType, valueLen, sensitive, extractable } = key.getAttribute({
    keyType: null,
    valueLen: null,
    sensitive: null,
    extractable: null,
  });
  if (keyType !== binding.KeyType.AES || valueLen !== rootKeyBytes)
    throw new TokenFailed(
      'refused',
      'expected an AES key of 256 bits; make one with: pkcs11-tool --keygen --key-type AES:32',
    );
  if (sensitive !== true || extractable !== false)
    throw new TokenFailed(
      'refused',
      'its bytes can be read out of the token; make a key with CKA_SENSITIVE true and CKA_EXTRACTABLE false, and change to it',
    );
}

function work(request: Exclude<TokenRequest, { verb: 'login' }>): Buffer {
  if (graphene === undefined || session === undefined) throw new TokenFailed('away', 'the token is not logged in');
  // Looked up each time: a key that was deleted, replaced or made extractable meanwhile is not used.
  const found = findKey(graphene, session, request.key);
  demandStrong(graphene, found);
  const key = found.toType();
  if (request.verb === 'identify')
    return session.createCipher({ name: 'AES_ECB', params: null }, key).once(request.block, Buffer.alloc(64));
  const mechanism = {
    name: 'AES_GCM',
    params: new graphene.AesGcm240Params(request.nonce, request.associatedData, tagBytes * 8),
  };
  if (request.verb === 'encrypt')
    return session
      .createCipher(mechanism, key)
      .once(request.plaintext, Buffer.alloc(request.plaintext.length + 2 * tagBytes));
  try {
    return session.createDecipher(mechanism, key).once(request.ciphertext, Buffer.alloc(request.ciphertext.length));
  } catch (error) {
    if (codeOf(error) !== 'CKR_GENERAL_ERROR') throw error;
    // What SoftHSM says where a tag does not match, since its version of the standard has no code for that; elsewhere it may
    // be a fault of the token. The key still working tells the two apart.
    session.createCipher({ name: 'AES_ECB', params: null }, key).once(Buffer.alloc(16, 0xff), Buffer.alloc(32));
    throw new TokenFailed('wrong_ciphertext', 'CKR_GENERAL_ERROR');
  }
}

/** The session or the token went away: the next request logs in again. */
const sessionLost = new Set([
  'CKR_SESSION_HANDLE_INVALID',
  'CKR_SESSION_CLOSED',
  'CKR_USER_NOT_LOGGED_IN',
  'CKR_TOKEN_NOT_PRESENT',
  'CKR_TOKEN_NOT_RECOGNIZED',
  'CKR_DEVICE_REMOVED',
  'CKR_CRYPTOKI_NOT_INITIALIZED',
]);
const busy = new Set(['CKR_SESSION_COUNT', 'CKR_DEVICE_MEMORY', 'CKR_OPERATION_ACTIVE', 'CKR_FUNCTION_CANCELED']);
const withdrawn = new Set([
  'CKR_KEY_FUNCTION_NOT_PERMITTED',
  'CKR_KEY_HANDLE_INVALID',
  'CKR_KEY_TYPE_INCONSISTENT',
  'CKR_MECHANISM_INVALID',
  'CKR_MECHANISM_PARAM_INVALID',
  'CKR_ACTION_PROHIBITED',
  'CKR_PIN_LOCKED',
  'CKR_PIN_EXPIRED',
  'CKR_USER_PIN_NOT_INITIALIZED',
]);
const pinWrong = new Set(['CKR_PIN_INCORRECT', 'CKR_PIN_INVALID', 'CKR_PIN_LEN_RANGE']);
const unreadable = new Set([
  'CKR_ENCRYPTED_DATA_INVALID',
  'CKR_ENCRYPTED_DATA_LEN_RANGE',
  'CKR_AEAD_DECRYPT_FAILED',
  'CKR_DATA_INVALID',
  'CKR_DATA_LEN_RANGE',
]);

function failureOf(error: unknown, verb: TokenRequest['verb']): TokenFailure {
  if (error instanceof TokenFailed) return error.failure;
  const code = codeOf(error);
  if (sessionLost.has(code)) {
    session = undefined;
    return { kind: 'away', reason: `the token answered ${code}` };
  }
  if (pinWrong.has(code)) return { kind: 'pin_refused', reason: `the token answered ${code}` };
  if (verb === 'decrypt' && unreadable.has(code)) return { kind: 'wrong_ciphertext', reason: code };
  if (busy.has(code)) return { kind: 'throttled', reason: `the token answered ${code}` };
  if (withdrawn.has(code))
    return {
      kind: 'refused',
      reason: `the token answered ${code}; look at the key's attributes and the token's state`,
    };
  return { kind: 'away', reason: `the token failed with ${code}` };
}

/** The name of the CKR code, which is all of an error that is passed on. */
function codeOf(error: unknown): string {
  return /\bCKR_[A-Z0-9_]+/.exec(error instanceof Error ? error.message : '')?.[0] ?? 'an unknown error';
}

async function answerTo(request: TokenRequest): Promise<TokenAnswer> {
  try {
    if (request.verb === 'login') return { bytes: await login(request) };
    if (session === undefined && loginDone !== undefined) await login(loginDone);
    return { bytes: work(request) };
  } catch (error) {
    return { failure: failureOf(error, request.verb) };
  }
}

let last: Promise<void> = Promise.resolve();
process.on('message', ({ id, request }: NumberedRequest) => {
  last = last.then(async () => {
    const answer: NumberedAnswer = { id, answer: await answerTo(request) };
    process.send?.(answer);
  });
});
process.once('disconnect', () => process.exit(0));
// Its parent may drain for a while and still need it.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => undefined);
