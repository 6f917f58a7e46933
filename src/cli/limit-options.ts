// The options that say how fast a run may go and before which others, as `reencrypt` and `run limit` take them.
import { InvalidArgumentError, Option, type Command } from 'commander';
import type { SteeringChange } from '../control/runs.js';
import { parseCount } from './arguments.js';

/** Takes a limit away; kept as a word until it is read, since commander makes an empty string of null. */
const none = 'none';

export interface LimitOptions {
  readonly rowsPerSecond?: number | typeof none;
  readonly workers?: number | typeof none;
  readonly hours?: string;
  readonly zone?: string;
  readonly priority?: number;
  readonly emergency?: true;
}

export function addLimitOptions(command: Command): Command {
  return command
    .addOption(
      new Option('--rows-per-second <n>', 'at most so many rows a second over all workers, or none').argParser(
        orNone(parseCount('rows per second or none', 1_000_000)),
      ),
    )
    .addOption(
      new Option('--workers <n>', 'at most so many workers on it at a time, or none').argParser(
        orNone(parseCount('a number of workers or none', 1_000)),
      ),
    )
    .option('--hours <from-to>', 'only in these hours of each day, such as 22:00-06:00, or none')
    .option('--zone <name>', 'the time zone of the hours, such as Europe/Berlin')
    .addOption(
      new Option('--priority <n>', 'from 0, the default, to 9; runs of a higher one are served first').argParser(
        parsePriority,
      ),
    )
    .addOption(
      new Option(
        '--emergency',
        'go before every other run, which waits and then goes on; takes limits away that are not named with it',
      ).conflicts('priority'),
    );
}

export function steeringOf(options: LimitOptions): SteeringChange {
  return {
    rowsPerSecond: limitOf(options.rowsPerSecond),
    workers: limitOf(options.workers),
    hours: limitOf(options.hours),
    zone: options.zone,
    priority: options.priority,
    isEmergency: options.emergency,
  };
}

function limitOf<T>(value: T | typeof none | undefined): T | null | undefined {
  return value === none ? null : value;
}

function orNone<T>(parse: (text: string) => T): (text: string) => T | typeof none {
  return (text) => (text === none ? none : parse(text));
}

function parsePriority(text: string): number {
  if (!/^\d$/.test(text)) throw new InvalidArgumentError('Expected a priority from 0 to 9.');
  return Number(text);
}
