// The options that say how fast a run may go and before which others, as `reencrypt` and `run limit` take them.
import { InvalidArgumentError, Option, type Command } from 'commander';
import type { SteeringChange } from '../control/runs.js';
import { parseCount } from './arguments.js';

export interface LimitOptions {
  readonly rowsPerSecond?: number | null;
  readonly workers?: number | null;
  readonly hours?: string | null;
  readonly zone?: string;
  readonly priority?: number;
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
    .addOption(
      new Option('--hours <from-to>', 'only in these hours of each day, such as 22:00-06:00, or none').argParser(
        orNone((text) => text),
      ),
    )
    .option('--zone <name>', 'the time zone of the hours, such as Europe/Berlin')
    .addOption(
      new Option('--priority <n>', 'from 0, the default, to 9; runs of a higher one are served first').argParser(
        parsePriority,
      ),
    );
}

export function steeringOf({ rowsPerSecond, workers, hours, zone, priority }: LimitOptions): SteeringChange {
  return { rowsPerSecond, workers, hours, zone, priority };
}

/** `none` takes a limit away. */
function orNone<T>(parse: (text: string) => T): (text: string) => T | null {
  return (text) => (text === 'none' ? null : parse(text));
}

function parsePriority(text: string): number {
  if (!/^\d$/.test(text)) throw new InvalidArgumentError('Expected a priority from 0 to 9.');
  return Number(text);
}
