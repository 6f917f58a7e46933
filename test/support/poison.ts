// One row in a hundred damaged, in every way a stored value can be: the run goes on past all of them.
import { listQuarantine } from '../../src/control/quarantine.js';
import { retire } from '../../src/control/keys.js';
import type { RunReport } from '../../src/control/runs.js';
import { damage } from './damage.js';
import { startDirectRunner } from './direct-run.js';
import { findImbalances } from './ledger.js';
import { outcomeOf } from './outcome-of.js';
import { openShop } from './shop.js';

const damages: readonly ((stored: string, other: string) => string)[] = [
  damage.bitFlipped,
  damage.cut,
  () => 'in clear',
  (_, other) => other,
  (stored) => damage.namingKey(stored, 99),
  damage.otherKeyCheck,
  damage.otherAlgorithm,
];

const insertRows = 5_000;

/** What `moveAroundPoison` is to answer. */
export function expectedOf(rows: number): object {
  return {
    report: {
      state: 'completed_with_failures',
      rows_examined: rows,
      rows_updated: rows - rows / 100,
      rows_failed: rows / 100,
      fields_stale: 0,
      round: 0,
    },
    quarantined: rows / 100,
    pauses: 0,
    imbalances: [],
    retired: 'KEY_IN_USE',
  };
}

export interface Poisoned {
  readonly report: RunReport;
  readonly quarantined: number;
  readonly pauses: number;
  readonly imbalances: readonly string[];
  /** How retiring the old key ended. */
  readonly retired: string;
}

/** What becomes of a run over `rows` rows of which each hundredth is damaged. */
export async function moveAroundPoison(rows: number): Promise<Poisoned> {
  const shop = await openShop({
    config: {
      keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' } },
      targets: [{ table: 'note', keyring: 'customers', columns: { body: {} } }],
    },
    ddl: ['CREATE TABLE note (id int PRIMARY KEY, body text)'],
  });
  try {
    const keyturn = await shop.open();
    const column = keyturn.column('note', 'body');
    for (let first = 1; first <= rows; first += insertRows) {
      const ids = Array.from({ length: Math.min(insertRows, rows - first + 1) }, (_, at) => first + at);
      const stored: string[] = [];
      for (const id of ids) stored.push(String(await column.encrypt({ pk: id }, `note ${id}`)));
      const values = ids.map((id, at) => {
        const value = stored[at] ?? '';
        return id % 100 === 0 ? (damages[(id / 100) % damages.length]?.(value, stored[at - 1] ?? '') ?? '') : value;
      });
      await shop.query('INSERT INTO note SELECT * FROM unnest($1::int[], $2::text[])', [ids, values]);
    }
    await keyturn.close();
    await shop.rotate();
    const runner = await startDirectRunner(shop);
    const report = await runner.finish(await shop.order()).finally(runner.close);
    const listing = await listQuarantine(
      shop.control.context,
      { run: report.run_id, target: undefined, cause: undefined },
      1,
    );
    return {
      report,
      quarantined: listing.cells,
      pauses: (await shop.query(`SELECT FROM keyturn.audit WHERE action = 'run.pausing'`)).length,
      imbalances: await findImbalances(shop),
      retired: await outcomeOf(() => retire(shop.control.context, undefined, 'v1', undefined)),
    };
  } finally {
    await shop.close();
  }
}
