// An operator that retires or destroys a key and kills itself at a chosen point. Arguments: the verb, the key, the point, and
// for destroy the request. Prints the point first.
import { openControl } from '../../src/app.js';
import { approveAndDestroy } from '../../src/control/destroy-key.js';
import { retire } from '../../src/control/keys.js';

const [verb, key = '', point, request = ''] = process.argv.slice(2);
const { context } = openControl({ environment: process.env, file: 'none' });
const doomed = {
  ...context,
  async reachPoint(at: string) {
    if (at !== point) return;
    process.stdout.write(`reached ${at}: pid ${process.pid}\n`);
    process.kill(process.pid, 'SIGKILL');
    // The signal ends the process before this could settle.
    await new Promise(() => undefined);
  },
};
if (verb === 'retire') await retire(doomed, undefined, key, 'test');
else await approveAndDestroy(doomed, undefined, key, request, 'test');
process.stdout.write('ended\n');
process.exit(0);
