// An operator's process that takes or restores a backup and kills itself at a chosen point. Arguments: the verb, the file, the
// point, for restore the folder of root keys, and at which of several times the point ends it. Prints what it got done.
import { openControl } from '../../src/app.js';
import { createBackup, restoreBackup } from '../../src/control/backups.js';
import { noConfigFile } from '../../src/control/context.js';
import { typedPassphrase } from '../../src/control/secret-input.js';
import { killFilesAt } from '../support/killing-files.js';

const [verb, file = '', point, rootsTo, times = '1'] = process.argv.slice(2);
const passphrase = typedPassphrase(process.env['TEST_PASSPHRASE'] ?? '');
const control = openControl({ environment: process.env, file: noConfigFile });
let seen = 0;
const context = {
  ...control.context,
  files: killFilesAt(point),
  async reachPoint(at: string) {
    if (at !== point || ++seen < Number(times)) return;
    process.kill(process.pid, 'SIGKILL');
    // The signal ends the process before this could settle.
    await new Promise(() => undefined);
  },
};
if (verb === 'create')
  await createBackup(context, {
    output: file,
    lock: { kind: 'passphrase', passphrase, workFactor: 10 },
    includeRoots: true,
    force: true,
    reason: 'test',
  });
else
  await restoreBackup(context, {
    input: file,
    opener: { kind: 'passphrase', passphrase },
    apply: true,
    rootsTo,
    reason: 'test',
  });
process.stdout.write('ended\n');
await control.close();
