// Before a root key is opened: whoever can attach a debugger or take a dump of this process reads every key in it, so a
// process that was started ready for that opens none, and one that has opened keys cannot be made ready by a signal.
import { url as inspectorUrl } from 'node:inspector';
import { KeyturnError } from '../../errors.js';

const refusedOptions = /^--(inspect|debug-port|heapsnapshot|heap-prof|report-|abort-on-uncaught-exception)/;
const allowance = 'KEYTURN_ALLOW_DEBUG';

/** The parts of `process` that decide. */
export interface DebuggedProcess {
  readonly execArgv: readonly string[];
  readonly env: NodeJS.ProcessEnv;
  on(signal: 'SIGUSR1', listener: () => void): unknown;
  listenerCount(signal: 'SIGUSR1'): number;
}

/** Throws DEBUG_REFUSED unless KEYTURN_ALLOW_DEBUG=1. */
export function refuseDebugging(current: DebuggedProcess): void {
  if (current.env[allowance] === '1') return;
  const found = [
    ...current.execArgv.map((option) => ({ option, source: 'on the command line of node' })),
    ...(current.env['NODE_OPTIONS'] ?? '').split(/[\s"]+/).map((option) => ({ option, source: 'in NODE_OPTIONS' })),
  ].find(({ option }) => refusedOptions.test(option.replaceAll('_', '-')));
  if (found !== undefined) throw refusal(`node was started with ${found.option.replace(/=.*/s, '')} (${found.source})`);
  if (inspectorUrl() !== undefined) throw refusal('the inspector is open in this process');
  // Without a listener node answers SIGUSR1, which any process of this user may send, by opening the inspector.
  if (current.listenerCount('SIGUSR1') === 0) current.on('SIGUSR1', () => undefined);
}

function refusal(why: string): KeyturnError {
  return new KeyturnError(
    'DEBUG_REFUSED',
    `no root key is opened: ${why}, and whoever debugs this process or reads its dumps reads its keys; start it without, or with ${allowance}=1 where no key matters`,
  );
}
