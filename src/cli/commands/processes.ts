// worker, supervisor, demo: processes that the entry point runs; nothing of them lives here.
import type { Command } from 'commander';
import { parseCount, parsePort } from '../arguments.js';
import type { Cli } from '../cli.js';
import { teach } from '../help.js';
import type { ListenOptions } from '../surroundings.js';

const drains =
  'Runs until SIGTERM or SIGINT, then drains: what is in hand is finished or given back. A second signal does not wait. Logs go to stderr (LOG_LEVEL).';

const portOption = [
  '--port <n>',
  'where to answer /healthz, /readyz and /metrics (default: PORT, then any free one)',
  parsePort,
] as const;
const hostOption = ['--host <address>', 'of which interface (default: HOST, then 127.0.0.1)'] as const;

export function addProcessCommands(program: Command, cli: Cli): void {
  teach(
    program
      .command('worker')
      .summary('Move the rows of runs, batch by batch, until SIGTERM.')
      .description(`Move the rows of runs, batch by batch. ${drains}`)
      .option(...portOption)
      .option(...hostOption)
      .action(async (options: ListenOptions) => {
        await cli.surroundings.runWorker(options);
      }),
    {
      changes:
        'the encrypted columns of registered tables, as runs order it. Needs DATABASE_URL, the root keys and the queue of the supervisor (REDIS_URL, or the same database); reads no keyturn.yaml. As many as wanted, on any machine.',
      examples: [
        ['KEYTURN_MEMBER=mover-1 keyturn worker', 'under a name that operators see; the host name where it is not set'],
        ['keyturn worker --port 9464 --host 0.0.0.0', 'health and metrics for whoever reaches this machine'],
      ],
      exits: {
        4: 'the supervisor uses another queue',
        8: 'wrong root key; nothing was written',
        130: 'ended by SIGINT',
        143: 'ended by SIGTERM',
      },
    },
  );

  teach(
    program
      .command('supervisor')
      .summary('Plan runs, feed the queue and mend what got lost, until SIGTERM.')
      .description(`Plan runs, feed the queue and mend what got lost. ${drains}`)
      .option(...portOption)
      .option(...hostOption)
      .action(async (options: ListenOptions) => {
        await cli.surroundings.runSupervisor(options);
      }),
    {
      changes:
        'the state of runs and batches. Needs DATABASE_URL and the queue. It also carries out schedules; for their key step alone it needs the root key, and a database login that may change keys. Any number may run; one leads, another takes over.',
      examples: [
        ['keyturn supervisor', 'one per cluster is enough, two survive the loss of one'],
        ['keyturn supervisor --port 9465', 'its metrics are those of the whole cluster while it leads'],
      ],
      exits: { 4: 'workers are live on another queue', 130: 'ended by SIGINT', 143: 'ended by SIGTERM' },
    },
  );

  teach(
    program
      .command('demo')
      .description(
        'Show the whole story on a database of its own: rotate under live writes, with a worker killed in the middle.',
      )
      .option('--rows <n>', 'how many customers', parseCount('a number of rows', 10_000_000), 50_000)
      .option('--json', 'print one JSON object')
      .option('--keep', 'leave the services running and print how to look around')
      .action(async (options: { rows: number; json?: true; keep?: true }) => {
        const { rows, json, keep } = options;
        cli.endWith(
          await cli.surroundings.runDemo({
            rows,
            json: json === true,
            keep: keep === true,
            environment: cli.surroundings.environment,
          }),
        );
      }),
    {
      changes:
        'nothing that was there before: it starts a PostgreSQL of its own, or makes a database of its own where DATABASE_URL is set, and removes it again, with what its queue left in the Redis of REDIS_URL where that is set.',
      examples: [
        ['keyturn demo', 'under a minute'],
        ['keyturn demo --rows 5000 --keep', 'smaller, and stays for you to look around'],
      ],
      exits: { 6: 'the report lacks a proof: the story did not come out as it should' },
    },
  );
}
