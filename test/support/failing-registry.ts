// The verbs that change what is registered and how it is treated, each with statement 1, 2, … failing: a change and its record
// are both there or both not, and a command that was repeated leaves no table without its fence.
import { beginMove, finalizeMove, prepareMove, type MoveRequest } from '../../src/control/adopt.js';
import type { ConfigFile } from '../../src/config.js';
import type { ControlContext } from '../../src/control/context.js';
import { init } from '../../src/control/init.js';
import { setLazyUpgrades } from '../../src/control/lazy-upgrades.js';
import { rebindValues } from '../../src/control/rebind.js';
import { repairRoots } from '../../src/control/repair-roots.js';
import { removeSchedule, setSchedule } from '../../src/control/schedules.js';
import { renameTargetTo } from '../../src/control/targets.js';
import { listFenceTroubles } from '../../src/engine/fence.js';
import type { FailingVerb } from './failing-verbs.js';
import type { Shop } from './shop.js';

export const registryConfig: ConfigFile = {
  keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' } },
  targets: ['note', 'line', 'place'].map((table) => ({
    table: `public.${table}`,
    keyring: 'customers',
    columns: { body: {} },
  })),
};
export const registryDdl = ['note', 'line', 'place'].map(
  (table) => `CREATE TABLE ${table} (id bigint PRIMARY KEY, body text)`,
);

async function valueOf(shop: Shop, text: string, parameters: unknown[] = []): Promise<string> {
  return String(Object.values((await shop.query(text, parameters))[0] ?? {})[0]);
}

/** Where the record ends; what a verb adds to it is told from there on. */
const lastRecord = (shop: Shop): Promise<string> => valueOf(shop, 'SELECT coalesce(max(id), 0) FROM keyturn.audit');

/** Each action once: some repeat what they have recorded already. */
const recordsSince = (shop: Shop, record: string): Promise<string> =>
  valueOf(
    shop,
    `SELECT coalesce(string_agg(DISTINCT action, ' ' ORDER BY action), '-') FROM keyturn.audit WHERE id > $1`,
    [record],
  );

async function lookAt(shop: Shop, record: string, state: string): Promise<string> {
  return `${await valueOf(shop, state)}: ${await recordsSince(shop, record)}`;
}

const ofNote = `FROM keyturn.target_column c JOIN keyturn.target t ON t.id = c.target_id WHERE t.table_name = 'note'`;
const wayOfNote = `SELECT CASE WHEN left_at IS NOT NULL THEN 'left' ELSE coalesce(move, 'own') END ${ofNote}`;

/** On its way (or not) as asked for, whatever an earlier attempt left; there is nothing to move. */
async function noteOnItsWay(shop: Shop, move: MoveRequest['move'] | null): Promise<string> {
  await shop.query(
    `UPDATE keyturn.run SET state = 'cancelled', finished_at = clock_timestamp() WHERE finished_at IS NULL`,
  );
  await shop.query(
    `UPDATE keyturn.target_column SET left_at = NULL, move = $1, foreign_format = $2, foreign_secret_uri = NULL
     WHERE id = (SELECT c.id ${ofNote})`,
    [move, move === null ? null : 'plaintext'],
  );
  return lastRecord(shop);
}

const toPlaintext = (move: MoveRequest['move']): MoveRequest => ({
  target: 'note',
  column: 'body',
  move,
  format: 'plaintext',
  secretUri: undefined,
  reason: 'test',
});
const noSupply = { require: async () => undefined, start: async () => undefined };

const moves: readonly FailingVerb[] = (['adopting', 'leaving'] as const).flatMap((move) => [
  {
    verb: `adopt --prepare, ${move}`,
    prepare: (shop) => noteOnItsWay(shop, null),
    run: (context) => prepareMove(context, toPlaintext(move)),
    look: (shop, record) => lookAt(shop, record, wayOfNote),
    stages: ['own: -', `${move}: column.${move}`],
    isRepeatable: true,
  },
  {
    verb: `adopt --finalize, ${move}`,
    prepare: (shop) => noteOnItsWay(shop, move),
    run: (context) => finalizeMove(context, { target: 'note', column: 'body', reason: 'test' }),
    look: (shop, record) => lookAt(shop, record, wayOfNote),
    stages: [`${move}: -`, move === 'adopting' ? 'own: column.adopted' : 'left: column.left'],
  },
]);

/** The only table that is renamed, wherever its rows are by now. */
const place = `SELECT table_name FROM keyturn.target WHERE table_name LIKE 'place%'`;

async function fenceOf(shop: Shop, table: string): Promise<string> {
  const troubles = await listFenceTroubles(shop.control.context.database);
  return troubles.some((trouble) => trouble.table === `public.${table}`) ? 'open' : 'fenced';
}

function withTable({ config, ...context }: ControlContext, table: string): ControlContext {
  const [first] = config.targets;
  return {
    ...context,
    config: { ...config, targets: first === undefined ? [] : [...config.targets, { ...first, table }] },
  };
}

export const failingRegistry: readonly FailingVerb[] = [
  {
    verb: 'key lazy off',
    async prepare(shop) {
      await setLazyUpgrades(shop.control.context, undefined, { isOn: true }, 'test');
      return lastRecord(shop);
    },
    run: (context) => setLazyUpgrades(context, undefined, { isOn: false }, 'test'),
    look: (shop, record) => lookAt(shop, record, 'SELECT lazy_is_on FROM keyturn.keyring'),
    stages: ['true: -', 'false: keyring.lazy'],
    isRepeatable: true,
  },
  {
    verb: 'schedule remove',
    async prepare(shop) {
      const quarterly = {
        keyring: undefined,
        cron: undefined,
        timeZone: undefined,
        gradualMs: undefined,
        reason: 'test',
      };
      await setSchedule(shop.control.context, quarterly);
      return lastRecord(shop);
    },
    run: (context) => removeSchedule(context, undefined, 'test'),
    look: (shop, record) => lookAt(shop, record, 'SELECT enabled FROM keyturn.schedule'),
    stages: ['true: -', 'false: schedule.remove'],
  },
  ...moves,
  {
    verb: 'adopt',
    prepare: (shop) => noteOnItsWay(shop, null),
    run: (context) => beginMove(context, { ...toPlaintext('adopting'), kind: 'reencrypt' }, noSupply),
    look: (shop, record) => lookAt(shop, record, wayOfNote),
    stages: ['own: -', 'adopting: column.adopting', 'adopting: column.adopting run.create'],
    isRepeatable: true,
  },
  {
    verb: 'target rename',
    async prepare(shop, nth) {
      // The columns stand in another order each time, so that they are found by name.
      const columns = nth % 2 === 1 ? 'body text, id bigint PRIMARY KEY' : 'id bigint PRIMARY KEY, body text';
      await shop.query(`CREATE TABLE place_${nth} (${columns})`);
      return `${await valueOf(shop, place)}:place_${nth}:${await lastRecord(shop)}`;
    },
    run: (context, about) => {
      const [from = '', to = ''] = about.split(':');
      return renameTargetTo(context, from, to, 'test');
    },
    async look(shop, about) {
      const [from = '', , record = ''] = about.split(':');
      const now = await valueOf(shop, place);
      return `${now === from ? 'from' : 'to'}, ${await fenceOf(shop, now)}: ${await recordsSince(shop, record)}`;
    },
    stages: [
      'from, fenced: -',
      'to, open: target.column.rename target.rename',
      'to, fenced: target.column.rename target.rename',
    ],
    isRepeatable: true,
  },
  {
    verb: 'rebind',
    async prepare(shop, nth) {
      const application = await shop.open();
      const stored = await application.column('line', 'body').encrypt({ pk: 1_000_000 + nth }, 'value');
      await application.close();
      await shop.query('INSERT INTO line VALUES ($1, $2)', [nth, stored]);
      return `${nth}:${await lastRecord(shop)}:${String(stored)}`;
    },
    run: async (context, about) => {
      const nth = Number(about.split(':')[0]);
      const { fields_reencrypted: repaired, fields_current: current } = await rebindValues(context, {
        target: 'line',
        pk: [String(nth)],
        wasPk: [String(1_000_000 + nth)],
        scope: undefined,
        wasScope: undefined,
        column: undefined,
        isDryRun: false,
        reason: 'test',
      });
      if (repaired + current !== 1) throw new Error('the value was not repaired');
    },
    async look(shop, about) {
      const [id, record = '', ...stored] = about.split(':');
      const isAsItWas = (await valueOf(shop, 'SELECT body FROM line WHERE id = $1', [id])) === stored.join(':');
      return `${isAsItWas ? 'as it was' : 'repaired'}: ${await recordsSince(shop, record)}`;
    },
    stages: ['as it was: -', 'repaired: target.rebind'],
    isRepeatable: true,
  },
  {
    verb: 'the repair of a root record',
    async prepare(shop) {
      await shop.query(
        `UPDATE keyturn.root_key SET verification_token = set_byte(verification_token, 9, get_byte(verification_token, 9) # 1)`,
      );
      return lastRecord(shop);
    },
    async run(context) {
      const cluster = await context.database.query('SELECT id FROM keyturn.cluster');
      const roots = await context.openRoots(['env:KEYTURN_ROOT_KEY'], String(cluster.rows[0]?.[0]));
      return repairRoots(context, () => roots);
    },
    async look(shop, record) {
      const { context } = shop.control;
      const [root] = await context.openRoots(
        ['env:KEYTURN_ROOT_KEY'],
        await valueOf(shop, 'SELECT id FROM keyturn.cluster'),
      );
      const [row] = await shop.query('SELECT id::int, verification_token FROM keyturn.root_key');
      const opens = await root?.opensToken(Number(row?.['id']), row?.['verification_token'] as Buffer);
      return `${opens === true ? 'opens' : 'damaged'}: ${await recordsSince(shop, record)}`;
    },
    stages: ['damaged: -', 'opens: root.repair'],
    isRepeatable: true,
  },
];

export const failingInit: FailingVerb = {
  verb: 'init of another table',
  async prepare(shop, nth) {
    // Every registered table takes statements of its own.
    for (const { tablename } of await shop.query(`SELECT tablename FROM pg_tables WHERE tablename LIKE 'extra%'`))
      await shop.query(`DROP TABLE ${String(tablename)}`);
    await shop.query(`CREATE TABLE extra_${nth} (id bigint PRIMARY KEY, body text)`);
    return `extra_${nth}:${await lastRecord(shop)}`;
  },
  run: (context, about) => init(withTable(context, about.split(':')[0] ?? '')),
  async look(shop, about) {
    const [table = '', record = ''] = about.split(':');
    const isThere = await valueOf(shop, 'SELECT count(*) FROM keyturn.target WHERE table_name = $1', [table]);
    return `${isThere === '0' ? 'none' : await fenceOf(shop, table)}: ${await recordsSince(shop, record)}`;
  },
  stages: ['none: -', 'open: target.column target.register', 'fenced: target.column target.register'],
  isRepeatable: true,
};
