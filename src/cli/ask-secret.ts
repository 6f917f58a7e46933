// Asks for a passphrase on the terminal without showing what is typed.
import { createInterface } from 'node:readline';
import { Writable } from 'node:stream';
import { KeyturnError } from '../errors.js';
import type { Surroundings } from './surroundings.js';

/** Throws USAGE where nobody is there to ask. */
export async function askSecret({ stdin, stderr }: Surroundings, question: string): Promise<string> {
  if (stdin?.isTTY !== true || stderr.isTTY !== true)
    throw new KeyturnError(
      'USAGE',
      'there is no terminal to ask for the passphrase on; give --passphrase-file or --passphrase-fd',
    );
  stderr.write(`${question}: `);
  const silent = new Writable({ write: (_chunk, _encoding, done) => done() });
  const lines = createInterface({ input: stdin, output: silent, terminal: true });
  try {
    return await new Promise<string>((resolve, reject) => {
      lines.once('line', resolve);
      lines.once('close', () => reject(new KeyturnError('USAGE', 'no passphrase was typed')));
      // The terminal is raw here, so Ctrl-C arrives as a character.
      lines.once('SIGINT', () => process.kill(process.pid, 'SIGINT'));
    });
  } finally {
    lines.close();
    stderr.write('\n');
  }
}
