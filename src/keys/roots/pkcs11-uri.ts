// The location of a `pkcs11:` root key, an RFC 7512 URI without its scheme: which token, which object, which module, and
// where the PIN is. What Keyturn does not know is refused, since an attribute passed over could mean another key.
import { refused } from './key-bytes.js';

/** Attributes as the URI gives them; what is undefined matches anything. */
export interface Pkcs11Location {
  readonly token: Readonly<Record<TokenAttribute, string | undefined>>;
  readonly object: string | undefined;
  readonly id: Buffer | undefined;
  /** Absolute path of the PKCS#11 library. */
  readonly modulePath: string;
  /** Absolute path of the file with the PIN. */
  readonly pinFile: string | undefined;
}

export type TokenAttribute = 'token' | 'serial' | 'manufacturer' | 'model';

const expected =
  'expected pkcs11:token=NAME;object=NAME?module-path=/PATH, and &pin-source=file:/PATH unless the PIN is in the environment';
const inPath = new Set(['token', 'serial', 'manufacturer', 'model', 'object', 'id', 'type']);
const inQuery = new Set(['module-path', 'pin-source']);

/** Throws ROOT_KEY_REFUSED; nothing of the URI is echoed but the names of attributes that are known. */
export function parsePkcs11Location(location: string): Pkcs11Location {
  const [path = '', query, ...more] = location.split('?');
  if (more.length > 0) throw refused('pkcs11:', expected);
  const attributes = new Map<string, string>();
  collect(path, ';', inPath, attributes);
  if (query !== undefined) collect(query, '&', inQuery, attributes);

  const text = (name: string): string | undefined => {
    const value = attributes.get(name);
    return value === undefined ? undefined : decode(value).toString('utf8');
  };
  if ((text('type') ?? 'secret-key') !== 'secret-key')
    throw refused('pkcs11:', 'a root key is a secret key; leave type= out, or give type=secret-key');
  const token = {
    token: text('token'),
    serial: text('serial'),
    manufacturer: text('manufacturer'),
    model: text('model'),
  };
  if (token.token === undefined && token.serial === undefined)
    throw refused('pkcs11:', `neither token= nor serial= says which token; ${expected}`);
  const id = attributes.get('id');
  if (id === undefined && !attributes.has('object'))
    throw refused('pkcs11:', `neither object= nor id= says which key; ${expected}`);
  const modulePath = text('module-path');
  if (modulePath === undefined || !isAbsolute(modulePath))
    throw refused('pkcs11:', `module-path= must be the absolute path of the PKCS#11 library; ${expected}`);
  return {
    token,
    object: text('object'),
    id: id === undefined ? undefined : decode(id),
    modulePath,
    pinFile: pinFileOf(text('pin-source')),
  };
}

function collect(part: string, separator: string, known: ReadonlySet<string>, into: Map<string, string>): void {
  for (const one of part.split(separator)) {
    const at = one.indexOf('=');
    const name = one.slice(0, Math.max(at, 0));
    if (name === 'pin-value')
      throw refused(
        'pkcs11:',
        'a PIN in a URI is stored and shown with it; change that PIN, and give the new one in KEYTURN_PKCS11_PIN_FILE, KEYTURN_PKCS11_PIN or pin-source=file:/PATH',
      );
    if (!known.has(name)) throw refused('pkcs11:', `it has an attribute that is not supported; ${expected}`);
    if (into.has(name)) throw refused('pkcs11:', `it has ${name}= twice`);
    if (at === one.length - 1) throw refused('pkcs11:', `its ${name}= is empty`);
    into.set(name, one.slice(at + 1));
  }
}

function decode(value: string): Buffer {
  if (/%(?![0-9a-fA-F]{2})/.test(value))
    throw refused('pkcs11:', 'a % in it is not followed by two hexadecimal digits');
  const bytes: Buffer[] = value
    .split(/(%[0-9a-fA-F]{2})/)
    .map((part) => (/^%[0-9a-fA-F]{2}$/.test(part) ? Buffer.from(part.slice(1), 'hex') : Buffer.from(part, 'utf8')));
  return Buffer.concat(bytes);
}

function pinFileOf(source: string | undefined): string | undefined {
  if (source === undefined) return undefined;
  const path = source.replace(/^file:(\/\/(?=\/))?/, '');
  if (isAbsolute(path)) return path;
  throw refused('pkcs11:', 'pin-source= must be file: and an absolute path; no program is run for a PIN');
}

function isAbsolute(path: string): boolean {
  return path.startsWith('/') && !path.includes('\0');
}
