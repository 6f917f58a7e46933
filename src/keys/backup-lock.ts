// A backup locked in the age format (age-encryption.org/v1), so that recovering needs none of our code: under a passphrase
// (scrypt) or to X25519 recipients. The library is loaded when it is used; nothing but the backup commands needs it.
import { randomInt } from 'node:crypto';
import type { Secret } from '../crypto/secret.js';
import { KeyturnError } from '../errors.js';

export type BackupLock =
  | {
      readonly kind: 'passphrase';
      readonly passphrase: Secret;
      /** log2 of scrypt's N; the library's own default, 18, where left out. */
      readonly workFactor?: number;
    }
  /** Public keys, `age1…`. */
  | { readonly kind: 'recipients'; readonly recipients: readonly string[] };

export type BackupOpener =
  | { readonly kind: 'passphrase'; readonly passphrase: Secret }
  /** Content of an identity file, as age-keygen writes it. */
  | { readonly kind: 'identities'; readonly file: Secret };

const leastCharacters = 20;
const leastWords = 6;
const recipientShape = /^age1[0-9a-z]{58}$/;

export async function lockBackup(content: Buffer, lock: BackupLock): Promise<Buffer> {
  const { Encrypter } = await import('age-encryption');
  const encrypter = new Encrypter();
  if (lock.kind === 'passphrase') {
    encrypter.setPassphrase(normalized(lock.passphrase.expose()));
    if (lock.workFactor !== undefined) encrypter.setScryptWorkFactor(lock.workFactor);
  } else {
    for (const recipient of lock.recipients) encrypter.addRecipient(recipient);
  }
  return Buffer.from(await encrypter.encrypt(content));
}

/** Throws BACKUP_REFUSED for the wrong passphrase or identity, BACKUP_DAMAGED for what is no whole age file. */
export async function unlockBackup(file: Buffer, opener: BackupOpener): Promise<Buffer> {
  const { Decrypter } = await import('age-encryption');
  const decrypter = new Decrypter();
  if (opener.kind === 'passphrase') decrypter.addPassphrase(normalized(opener.passphrase.expose()));
  else for (const identity of identitiesOf(opener.file.expose())) addIdentity(decrypter, identity);
  let content: Uint8Array;
  try {
    content = await decrypter.decrypt(file);
  } catch (error) {
    // The library has no codes; its words name no secret, and are not passed on all the same.
    if (error instanceof Error && error.message.startsWith('no identity matched'))
      throw new KeyturnError(
        'BACKUP_REFUSED',
        opener.kind === 'passphrase'
          ? 'the backup does not open with this passphrase (or it was made for recipients: give --identity)'
          : 'the backup does not open with this identity (or it was made with a passphrase)',
      );
    throw new KeyturnError('BACKUP_DAMAGED', 'the file is not a whole age file; take another backup');
  }
  return Buffer.from(content.buffer, content.byteOffset, content.byteLength);
}

function addIdentity(decrypter: { addIdentity(identity: string): void }, identity: string): void {
  try {
    decrypter.addIdentity(identity);
  } catch {
    throw new KeyturnError('USAGE', 'the identity file holds a line that is no age identity (AGE-SECRET-KEY-1…)');
  }
}

function identitiesOf(file: string): readonly string[] {
  const lines = file
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '' && !line.startsWith('#'));
  if (lines.length > 0) return lines;
  throw new KeyturnError('USAGE', 'the identity file holds no age identity (AGE-SECRET-KEY-1…)');
}

/** Throws USAGE for anything but an X25519 public key. */
export function demandRecipient(recipient: string): void {
  if (/^AGE-SECRET-KEY-/i.test(recipient))
    throw new KeyturnError(
      'USAGE',
      'a recipient is a public key (age1…), this is a secret one; an argument is no secret, so make a new one with: age-keygen',
    );
  if (!recipientShape.test(recipient))
    throw new KeyturnError(
      'USAGE',
      'a recipient is an X25519 public key as age-keygen prints it: age1 and 58 characters',
    );
}

/** Throws USAGE for a passphrase that could be guessed once somebody has the file. */
export function demandStrongPassphrase(passphrase: Secret): void {
  const text = normalized(passphrase.expose());
  const words = new Set(text.split(/[\s-]+/).filter((word) => word.length >= 3));
  if (new Set(text).size >= 6 && (text.length >= leastCharacters || words.size >= leastWords)) return;
  throw new KeyturnError(
    'USAGE',
    `a passphrase takes at least ${leastCharacters} characters, or ${leastWords} different words; leave it out and one is made for you`,
  );
}

/** The same characters typed on two keyboards are the same passphrase. */
function normalized(text: string): string {
  return text.normalize('NFC');
}

/** Without characters that look alike. */
const alphabet = '23456789abcdefghjkmnpqrstuvwxyz';
const groups = 6;
const groupLength = 5;

/** 30 characters of 31, in groups: 148 bits. */
export function generatePassphrase(): string {
  const group = (): string => Array.from({ length: groupLength }, () => alphabet[randomInt(alphabet.length)]).join('');
  return Array.from({ length: groups }, group).join('-');
}
