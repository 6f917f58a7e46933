// Opens a root key as every process does, and says what became of it. Stays until SIGTERM; answers SIGUSR1 with whether the
// inspector is open.
import { url } from 'node:inspector';
import { createRootOpener } from '../../src/app-member.js';
import { exitCodes, KeyturnError } from '../../src/errors.js';

try {
  await createRootOpener(process.env).open(['env:KEYTURN_ROOT_KEY'], '0b9c1f0e-6d1c-4f5a-9a51-2f6b7c8d9e01');
} catch (error) {
  if (!(error instanceof KeyturnError)) throw error;
  process.stdout.write(`${error.code}\n`);
  process.exit(exitCodes[error.kind]);
}
process.once('SIGTERM', () => process.exit(0));
setInterval(() => undefined, 1_000);
process.stdout.write('opened\n');
// Added after the opener's own: alone it would hide that the opener has none.
if (process.listenerCount('SIGUSR1') === 1)
  process.on('SIGUSR1', () => {
    process.stdout.write(`signalled, inspector ${url() === undefined ? 'closed' : 'open'}\n`);
  });
