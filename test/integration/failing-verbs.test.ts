// Short verbs of the operator, each with its statement 1, 2, … failing: what it changes and its record are both there or both
// not, and an error is never taken for success.
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createBackup } from '../../src/control/backups.js';
import type { ControlContext } from '../../src/control/context.js';
import { forget } from '../../src/control/members.js';
import { resolveQuarantined } from '../../src/control/quarantine.js';
import { removeSchedule, setSchedule } from '../../src/control/schedules.js';
import { Secret } from '../../src/crypto/secret.js';
import { failAt } from '../support/failing-database.js';
import { insertMember } from '../support/members.js';
import { outcomeOf } from '../support/outcome-of.js';
import { openShop, type Shop } from '../support/shop.js';

const lock = {
  kind: 'passphrase',
  passphrase: new Secret('seven-quiet-otters-count-nine-lamps'),
  workFactor: 5,
} as const;
const schedule = { keyring: undefined, cron: undefined, timeZone: undefined, gradualMs: undefined, reason: 'test' };

let shop: Shop;
let folder: string;
let run: number;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'keyturn-failing-'));
  shop = await openShop();
  run = await shop.order();
  await shop.query(
    `INSERT INTO keyturn.batch (run_id, pass, target_id, kind) SELECT $1, 1, id, 'reencrypt' FROM keyturn.target`,
    [run],
  );
});
afterAll(async () => {
  await shop.close();
  rmSync(folder, { recursive: true });
});

interface Verb {
  readonly verb: string;
  readonly record: string;
  /** Makes what the attempt of this number is about. */
  readonly prepare: (attempt: number) => Promise<unknown>;
  readonly run: (context: ControlContext, attempt: number) => Promise<unknown>;
  /** Counts what the attempt changed; the query's one parameter is the attempt. */
  readonly changed: string;
}

const fileOf = (attempt: number): string => join(folder, `${attempt}.age`);

const verbs: readonly Verb[] = [
  {
    verb: 'backup create',
    record: 'backup.create',
    prepare: async () => undefined,
    run: (context, attempt) =>
      createBackup(context, { output: fileOf(attempt), lock, includeRoots: false, force: false, reason: 'test' }),
    changed: `SELECT count(*)::int AS n FROM keyturn.backup WHERE file_name = $1 || '.age'`,
  },
  {
    verb: 'quarantine resolve',
    record: 'quarantine.resolve',
    prepare: (attempt) =>
      shop.query(
        `INSERT INTO keyturn.quarantine (run_id, batch_id, target_id, column_id, row_key, key_id, cause)
         SELECT b.run_id, b.id, c.target_id, c.id, ARRAY[$1::text], 1, 'C' || $1::text
         FROM keyturn.batch b, keyturn.target_column c WHERE b.run_id = $2 AND c.name = 'email'`,
        [attempt, run],
      ),
    run: (context, attempt) =>
      resolveQuarantined(context, { run, target: 'customer', cause: `C${attempt}`, reason: 'test' }),
    changed: `SELECT count(*)::int AS n FROM keyturn.quarantine WHERE cause = 'C' || $1::text AND resolved_at IS NOT NULL`,
  },
  {
    verb: 'schedule set',
    record: 'schedule.set',
    prepare: () => outcomeOf(() => removeSchedule(shop.control.context, undefined, 'test')),
    run: (context) => setSchedule(context, schedule),
    changed: `SELECT count(*)::int AS n FROM keyturn.schedule WHERE enabled AND $1::text IS NOT NULL`,
  },
  {
    verb: 'member forget',
    record: 'member.forget',
    prepare: (attempt) => insertMember(shop, { name: `m${attempt}`, holds: [1], writes: 1, silentForSeconds: 60 }),
    run: (context, attempt) => forget(context, `m${attempt}`, { evenLive: false, reason: 'test' }),
    changed: `SELECT 1 - count(*)::int AS n FROM keyturn.member WHERE name = 'm' || $1::text`,
  },
];

test.each(verbs)(
  'I10 $verb whose n-th statement fails, for every n, leaves change and record or neither',
  async (verb) => {
    const countRecords = async (): Promise<number> =>
      Number(
        (await shop.query('SELECT count(*)::int AS n FROM keyturn.audit WHERE action = $1', [verb.record]))[0]?.['n'],
      );
    const seen = { unchanged: 0, changed: 0 };
    for (let nth = 1; ; nth++) {
      await verb.prepare(nth);
      const recordsBefore = await countRecords();
      const { database, asked } = failAt(shop.control.context.database, nth);
      const end = await outcomeOf(() => verb.run({ ...shop.control.context, database }, nth));
      const changes = Number((await shop.query(verb.changed, [String(nth)]))[0]?.['n']);
      const isOver = asked() < nth;
      expect({ nth, end, records: (await countRecords()) - recordsBefore }).toEqual({
        nth,
        end: isOver ? 'done' : 'DATABASE_UNAVAILABLE',
        records: changes,
      });
      seen[changes === 0 ? 'unchanged' : 'changed']++;
      // A record of a backup never stands for a file that is not there.
      expect(verb.verb !== 'backup create' || changes === 0 || existsSync(fileOf(nth))).toBe(true);
      if (isOver) break;
    }
    expect(seen.unchanged).toBeGreaterThan(3);
    expect(seen.changed).toBeGreaterThan(0);
  },
);
