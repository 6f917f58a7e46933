// Who does the work of a run that a command begins: nobody in particular, those that are live already (`--wait`), or child
// processes of the command (`--local N`).
import type { RunnerSupply } from '../control/rotate-and-reencrypt.js';
import { findRunners, requireRunners, type RunReport } from '../control/runs.js';
import type { Cli, Running } from './cli.js';
import { createLocalRunners, type LocalRunners } from './local-runners.js';

export interface Waiting {
  readonly wait?: boolean;
  readonly local?: number;
}

export interface Staff {
  readonly supply: RunnerSupply;
  readonly waits: boolean;
  readonly runners: LocalRunners | undefined;
}

const nothing = async (): Promise<void> => undefined;

/** To be called before root keys are opened: local runners need the environment as it was given. */
export function staffFor(cli: Cli, running: Running, { wait, local }: Waiting): Staff {
  const { context } = running;
  if (local === undefined)
    return {
      supply: { require: wait === true ? () => requireRunners(context) : nothing, start: nothing },
      waits: wait === true,
      runners: undefined,
    };
  const runners = createLocalRunners({
    surroundings: cli.surroundings,
    environment: { ...cli.surroundings.environment },
    workers: local,
  });
  running.atEnd(() => runners.drain());
  // Several runs of one command share them.
  let started: Promise<void> | undefined;
  return { supply: { require: nothing, start: () => (started ??= runners.start(context)) }, waits: true, runners };
}

/** For a request that workers heed by themselves: says when nobody is there to settle it. */
export async function noteUnsettled({ context, output }: Running, reports: readonly RunReport[]): Promise<void> {
  const [first] = reports.filter(({ state }) => state === 'pausing' || state === 'cancelling');
  if (first === undefined || (await findRunners(context)).hasSupervisor) return;
  output.note(
    `no supervisor is live to settle it, so it stays ${first.state} until one is; start one with: keyturn supervisor`,
  );
}

/** For a command that does not wait: says when nobody is there to do what it ordered. */
export async function noteMissingRunners({ context, output }: Running): Promise<void> {
  const { hasSupervisor, workers } = await findRunners(context);
  if (!hasSupervisor) output.note('no supervisor is live, so nothing moves yet; start one with: keyturn supervisor');
  if (workers === 0) output.note('no worker is live, so nothing moves yet; start one or more with: keyturn worker');
}
