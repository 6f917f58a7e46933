// Passphrases, identities and new root keys as they come in: from a private file or an open descriptor, never from an argument. What was
// read is held as a Secret and shown nowhere.
import { closeSync, constants, fstatSync, openSync, readFileSync } from 'node:fs';
import { Secret } from '../crypto/secret.js';
import { KeyturnError } from '../errors.js';

const groupOrOthers = 0o077;
const firstFreeDescriptor = 3;

/** The first line. Throws USAGE for a file that others can read or that is empty, FILE_UNAVAILABLE for none. */
export function readPassphraseFile(path: string): Secret {
  return firstLine(readPrivateFile(path), path);
}

/** Whole content: an age identity file. */
export function readIdentityFile(path: string): Secret {
  return new Secret(readPrivateFile(path));
}

/** The same for a new root key. */
export function readKeyFile(path: string): Secret {
  return firstLine(readPrivateFile(path), path, 'key');
}

/** The first line of what an inherited descriptor gives: 0 for stdin, or one that the caller opened. */
export function readPassphraseDescriptor(descriptor: number): Secret {
  return readDescriptor(descriptor, 'passphrase');
}

/** The same for a new root key. */
export function readKeyDescriptor(descriptor: number): Secret {
  return readDescriptor(descriptor, 'key');
}

function readDescriptor(descriptor: number, noun: SecretNoun): Secret {
  if (descriptor !== 0 && descriptor < firstFreeDescriptor)
    throw new KeyturnError('USAGE', `descriptor ${descriptor} is for output; expected 0 (stdin), or 3 and above`);
  const source = `descriptor ${descriptor}`;
  return firstLine(
    reading(source, () => readFileSync(descriptor, 'utf8')),
    source,
    noun,
  );
}

export function typedPassphrase(text: string): Secret {
  return firstLine(text, 'the terminal');
}

function readPrivateFile(path: string): string {
  return reading(path, () => {
    const descriptor = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW);
    try {
      const { mode } = fstatSync(descriptor);
      if ((mode & groupOrOthers) !== 0)
        throw new KeyturnError('USAGE', `others have access to ${path}; run: chmod 600 '${path}'`);
      return readFileSync(descriptor, 'utf8');
    } finally {
      closeSync(descriptor);
    }
  });
}

function reading(source: string, read: () => string): string {
  try {
    return read();
  } catch (error) {
    if (error instanceof KeyturnError) throw error;
    const code = error instanceof Error && 'code' in error ? String(error.code) : 'an unknown error';
    throw new KeyturnError('FILE_UNAVAILABLE', `reading ${source} failed with ${code}`, { cause: code });
  }
}

/** A new root key from an argument, where everybody on the machine can see it. */
export function argumentKey(text: string): Secret {
  return firstLine(text, '--new-key', 'key');
}

type SecretNoun = 'passphrase' | 'key';

function firstLine(text: string, source: string, noun: SecretNoun = 'passphrase'): Secret {
  const [line = ''] = text.split(/\r?\n/, 1);
  if (line === '') throw new KeyturnError('USAGE', `${source} gave an empty ${noun}`);
  return new Secret(line);
}
