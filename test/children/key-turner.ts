// An operator that rotates the key of the only keyring and kills itself at a chosen point, or at none. Argument: the point.
import { openControl } from '../../src/app.js';
import { noConfigFile } from '../../src/control/context.js';
import { rotateKey } from '../../src/control/keys.js';

const [point = 'none'] = process.argv.slice(2);
const control = openControl({ environment: process.env, file: noConfigFile });
await rotateKey(
  {
    ...control.context,
    patienceMs: 0,
    async reachPoint(at) {
      if (at !== point) return;
      process.stdout.write(`reached ${at}: pid ${process.pid} signal SIGKILL\n`);
      process.kill(process.pid, 'SIGKILL');
      // The signal ends the process before this could settle.
      await new Promise(() => undefined);
    },
  },
  { keyring: undefined, ifOlderThanMs: undefined, reason: 'test' },
);
process.stdout.write('ended\n');
await control.close();
