// What every foreign format promises, as one check: for the formats that Keyturn ships and for a user's own module. It
// needs no test runner, and answers in words what does not hold.
import type { KeyObject } from 'node:crypto';
import { isWellFormed } from '../crypto/encoding.js';
import type { ForeignFormat } from './foreign.js';
import type { Storage, Stored } from './format.js';

export interface ConformanceOptions {
  /** Two secrets of the format, for a format with a key. */
  readonly secrets: readonly [Buffer, Buffer];
  /** Has a server evaluate an expression over the value `v`, text or bytea; left out, SQL is not compared. */
  readonly evaluate?: (sql: string, storage: Storage, stored: Stored) => Promise<unknown>;
}

const texts = ['', 'a', 'alice@example.org', 'Zoë · 東京 · 🔑', 'line\nbreak', 'x'.repeat(5_000)];

/** Values that no format wrote, for every storage. */
const strangers: readonly Buffer[] = [
  '',
  '=',
  'AAAA',
  'A'.repeat(43),
  'A'.repeat(64),
  'é'.repeat(40),
  '{"scheme_version":1}',
  '-----BEGIN PGP MESSAGE-----',
  '-----BEGIN PGP MESSAGE-----\n\n=====\n-----END PGP MESSAGE-----',
  'kt1.S1QBAgAAAAew2ghd',
  'line\n'.repeat(20),
].map((text) => Buffer.from(text, 'utf8'));

/** Empty where everything holds. */
export async function findBrokenPromises(
  format: ForeignFormat,
  options: ConformanceOptions,
): Promise<readonly string[]> {
  const [secret, otherSecret] = options.secrets;
  const key = format.readKey(secret);
  const otherKey = format.readKey(otherSecret);
  if (key === undefined || otherKey === undefined) return ['readKey does not take the given secrets'];
  if (format.storages.length === 0) return ['it names no storage'];
  const broken: string[] = [];
  for (const storage of format.storages) {
    const check = { format, storage, key, otherKey, evaluate: options.evaluate };
    broken.push(...(await checkStorage(check)).map((words) => `${storage}: ${words}`));
  }
  return broken;
}

interface Check {
  readonly format: ForeignFormat;
  readonly storage: Storage;
  readonly key: KeyObject;
  readonly otherKey: KeyObject;
  readonly evaluate: ConformanceOptions['evaluate'];
}

async function checkStorage(check: Check): Promise<readonly string[]> {
  const { format, storage, key } = check;
  const broken: string[] = [];
  const plaintexts = texts.map((text) => Buffer.from(text, 'utf8'));
  if (storage === 'bytes') plaintexts.push(Buffer.from([0, 255, 128, 1]));
  for (const plaintext of plaintexts) {
    const stored = format.encrypt(plaintext, key, storage);
    const told = `a plaintext of ${plaintext.length} bytes`;
    if ((storage === 'text') !== (typeof stored === 'string')) broken.push(`${told} is stored as another type`);
    if (stored.length > format.storedLength(plaintext.length, storage))
      broken.push(`${told} is stored longer than storedLength says`);
    if (!format.isValue(stored)) broken.push(`isValue does not know ${told} as its own`);
    if (!isEqual(attempt(format, stored, key), plaintext)) broken.push(`${told} does not decrypt to itself`);
    broken.push(...checkSecrets(check, stored, plaintext, told), ...(await checkHostile(check, mutationsOf(stored))));
    if (format.authenticates) broken.push(...checkTampering(check, stored, plaintext, told));
  }
  const given = strangers.map((bytes) => (storage === 'text' ? bytes.toString('utf8') : bytes));
  return [...broken, ...(await checkHostile(check, given))];
}

/** Under a wrong key a value decrypts to nothing; where nothing authenticates, at least not to itself. */
function checkSecrets({ format, otherKey }: Check, stored: Stored, plaintext: Buffer, told: string): readonly string[] {
  if (format.secret === undefined) return [];
  const opened = attempt(format, stored, otherKey);
  const isOpen = format.authenticates ? Buffer.isBuffer(opened) : isEqual(opened, plaintext);
  return isOpen ? [`${told} decrypts under another key`] : [];
}

function checkTampering({ format, key }: Check, stored: Stored, plaintext: Buffer, told: string): readonly string[] {
  return mutationsOf(stored).some((changed) => {
    const opened = attempt(format, changed, key);
    return Buffer.isBuffer(opened) && !opened.equals(plaintext);
  })
    ? [`${told} decrypts to something else after a change`]
    : [];
}

/** Whatever is stored: nothing throws, nothing is null, and SQL agrees with isValue. */
async function checkHostile({ format, storage, key, evaluate }: Check, values: readonly Stored[]): Promise<string[]> {
  const broken: string[] = [];
  for (const stored of values) {
    const told = `a changed or strange value of ${stored.length}`;
    const opened = attempt(format, stored, key);
    if (opened === 'THROWN') broken.push(`decrypt throws for ${told}`);
    if (Buffer.isBuffer(opened) && !format.isValue(stored)) broken.push(`decrypt takes ${told} that isValue refuses`);
    if (evaluate === undefined) continue;
    const sql = await evaluate(format.sqlIsValue('v', storage), storage, stored);
    if (sql !== format.isValue(stored)) broken.push(`SQL and isValue differ for ${told}`);
  }
  return broken;
}

function attempt(format: ForeignFormat, stored: Stored, key: KeyObject): Buffer | string {
  try {
    return format.decrypt(stored, key);
  } catch {
    return 'THROWN';
  }
}

function isEqual(opened: Buffer | string, plaintext: Buffer): boolean {
  return Buffer.isBuffer(opened) && opened.equals(plaintext);
}

/** Shortened, lengthened, and changed at the beginning, in the middle and at the end. */
function mutationsOf(stored: Stored): readonly Stored[] {
  if (typeof stored !== 'string') {
    const places = [0, stored.length >> 1, stored.length - 1].filter((at) => at >= 0 && at < stored.length);
    const flipped = places.map((at) => Buffer.from(stored.map((byte, index) => (index === at ? byte ^ 1 : byte))));
    return [stored.subarray(1), stored.subarray(0, -1), Buffer.concat([stored, stored.subarray(0, 1)]), ...flipped];
  }
  const places = [0, stored.length >> 1, stored.length - 1].filter((at) => at >= 0 && at < stored.length);
  const flipped = places.map((at) => `${stored.slice(0, at)}${stored[at] === 'B' ? 'C' : 'B'}${stored.slice(at + 1)}`);
  // Half a surrogate pair is no text that a database gives.
  return [stored.slice(1), stored.slice(0, -1), `${stored}A`, ` ${stored}`, `${stored}\n`, ...flipped].filter((text) =>
    isWellFormed(text),
  );
}
