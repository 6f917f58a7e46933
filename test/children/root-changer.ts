// An operator's process that changes the root key and kills itself at a chosen point. Arguments: the verb, the URI of the
// new root key, the point, or `none`.
import { openControl } from '../../src/app.js';
import { noConfigFile, type ControlContext } from '../../src/control/context.js';
import { finalizeRoot, prepareRoot, rollbackRoot, rotateRoot, type RootChangeReport } from '../../src/control/roots.js';

const [verb = '', to = '', point] = process.argv.slice(2);
const target = { to, keyring: undefined, without: [], reason: 'test' };
const verbs: Readonly<Record<string, (context: ControlContext) => Promise<RootChangeReport>>> = {
  prepare: (context) => prepareRoot(context, target),
  finalize: (context) => finalizeRoot(context, target),
  rollback: (context) => rollbackRoot(context, target),
  rotate: (context) => rotateRoot(context, target),
};
const control = openControl({ environment: process.env, file: noConfigFile });
const report = await verbs[verb]?.({
  ...control.context,
  patienceMs: 0,
  async reachPoint(at) {
    if (at !== point) return;
    process.stdout.write(`reached ${at}: pid ${process.pid} signal SIGKILL\n`);
    process.kill(process.pid, 'SIGKILL');
  },
});
process.stdout.write(`ended: ${report?.outcome}\n`);
await control.close();
