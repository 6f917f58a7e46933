// The verbs that make and turn keys, each with statement 1, 2, … failing. A verb of several transactions may leave what stands
// after any of them, never what stands in the middle of one; repeated, it comes to its end and makes no key twice.
import { expect } from 'vitest';
import { containKey } from '../../src/control/compromise.js';
import type { ControlContext } from '../../src/control/context.js';
import { init } from '../../src/control/init.js';
import { activate, rotateKey, stageKey } from '../../src/control/keys.js';
import { forget } from '../../src/control/members.js';
import { discardStagedKey, lockKeyring } from '../../src/store/keys.js';
import { failAt } from './failing-database.js';
import { insertMember } from './members.js';
import { outcomeOf } from './outcome-of.js';
import type { Shop } from './shop.js';

/** `from`, and every `step`-th statement after it, until none is left to fail. */
export interface FailingStatements {
  readonly from: number;
  readonly step: number;
}

export interface FailingVerb {
  readonly verb: string;
  /** Brings about where it begins; answers what the rest is about. */
  prepare(shop: Shop, nth: number): Promise<string>;
  run(context: ControlContext, about: string): Promise<unknown>;
  /** What stands, in words, as far as the verb changes it. */
  look(shop: Shop, about: string): Promise<string>;
  /** What may stand after a failure, in the order in which it comes about; the last is where the verb ends. */
  readonly stages: readonly string[];
  /** Repeated after its end it is to succeed and to change nothing. */
  readonly isRepeatable?: boolean;
}

/** The keys that play a part: since the one that was active when the verb began. */
export async function keysSince(shop: Shop, firstId: string): Promise<string> {
  const rows = await shop.query(
    `SELECT state || CASE WHEN compromised THEN '!' ELSE '' END || CASE WHEN ordered_at IS NOT NULL AND state = 'staged' THEN ' (ordered)' ELSE '' END
       || CASE WHEN (SELECT count(*) FROM keyturn.data_key_wrap w WHERE w.data_key_id = k.id) = (state <> 'destroyed')::int THEN '' ELSE ' (wraps)' END AS words
     FROM keyturn.data_key k WHERE k.purpose = 1 AND k.id >= $1 AND k.state <> 'destroyed'
       AND k.keyring_id = (SELECT id FROM keyturn.keyring WHERE name = 'customers') ORDER BY k.version`,
    [firstId],
  );
  return rows.map(({ words }) => String(words)).join(', ');
}

export async function activeId(shop: Shop): Promise<string> {
  const [row] = await shop.query(
    `SELECT id FROM keyturn.data_key WHERE state = 'active' AND keyring_id = (SELECT id FROM keyturn.keyring WHERE name = 'customers')`,
  );
  return String(row?.['id']);
}

/** As left by an activation that was cut short. */
async function withoutStandby(shop: Shop): Promise<string> {
  await shop.control.context.database.transaction(async (client) => {
    const keyring = await lockKeyring(client, 'customers');
    const staged = keyring.keys.find(({ state }) => state === 'staged');
    if (staged !== undefined) await discardStagedKey(client, keyring, staged, 'test');
  });
  return activeId(shop);
}

export async function withStandby(shop: Shop): Promise<string> {
  await stageKey(shop.control.context, 'customers', 'test');
  return activeId(shop);
}

export const turned = [
  'active, staged',
  'active, staged (ordered)',
  'decrypt_only, active',
  'decrypt_only, active, staged',
];

export const failingVerbs: readonly FailingVerb[] = [
  {
    verb: 'key stage',
    prepare: withoutStandby,
    run: (context) => stageKey(context, 'customers', 'test'),
    look: keysSince,
    stages: ['active', 'active, staged'],
  },
  {
    verb: 'key activate',
    prepare: withStandby,
    run: (context) => activate(context, 'customers', undefined, 'test'),
    look: keysSince,
    stages: turned.filter((stage) => !stage.includes('ordered')),
  },
  {
    verb: 'key rotate',
    prepare: withStandby,
    run: (context) => rotateKey(context, { keyring: 'customers', ifOlderThanMs: undefined, reason: 'test' }),
    look: keysSince,
    stages: turned,
  },
  {
    verb: 'key compromise',
    prepare: withStandby,
    run: (context, key) => containKey(context, { keyring: 'customers', key, reason: 'test', isRootSuspect: false }),
    look: keysSince,
    stages: ['active, staged', 'decrypt_only!, active', 'decrypt_only!, active, staged'],
  },
  {
    verb: 'key compromise --root-suspect',
    prepare: withStandby,
    run: (context, key) => containKey(context, { keyring: 'customers', key, reason: 'test', isRootSuspect: true }),
    look: keysSince,
    stages: ['active, staged', 'active, staged (ordered)', 'decrypt_only!, active', 'decrypt_only!, active, staged'],
  },
  {
    verb: 'member forget',
    prepare: async (shop) => {
      await insertMember(shop, { name: 'billing', holds: [1], writes: 1, silentForSeconds: 3_600 });
      await shop.query(`INSERT INTO keyturn.expected_member VALUES ('billing') ON CONFLICT DO NOTHING`);
      return 'billing';
    },
    run: (context, name) => forget(context, name, { evenLive: false, reason: 'test' }),
    look: async (shop) => {
      const [row] = await shop.query(
        `SELECT (SELECT count(*)::int FROM keyturn.member WHERE name = 'billing') AS members, (SELECT count(*)::int FROM keyturn.expected_member) AS expected`,
      );
      return `${String(row?.['members'])} member, ${String(row?.['expected'])} expected`;
    },
    stages: ['1 member, 1 expected', '0 member, 0 expected'],
  },
  {
    verb: 'init of another keyring',
    prepare: async (_, nth) => `keyring_${nth}`,
    run: (context, name) =>
      init({
        ...context,
        config: {
          ...context.config,
          keyrings: [...context.config.keyrings, ...context.config.keyrings.map((keyring) => ({ ...keyring, name }))],
        },
      }),
    look: async (shop, name) => {
      const rows = await shop.query(
        `SELECT coalesce(string_agg(k.state, ', ' ORDER BY k.version), 'none') AS words FROM keyturn.keyring n
         JOIN keyturn.data_key k ON k.keyring_id = n.id WHERE n.name = $1`,
        [name],
      );
      return String(rows[0]?.['words']);
    },
    stages: ['none', 'staged', 'active', 'active, staged'],
  },
];

/** Answers how many statements there were to fail. */
export async function failStatements(
  shop: Shop,
  { prepare, run, look, stages, isRepeatable = false }: FailingVerb,
  { from, step }: FailingStatements,
): Promise<number> {
  const { context } = shop.control;
  for (let nth = from; ; nth += step) {
    const about = await prepare(shop, nth);
    expect(await look(shop, about)).toBe(stages[0]);
    const { database, asked } = failAt(context.database, nth);
    const end = await outcomeOf(() => run({ ...context, database, patienceMs: 0 }, about));
    const isOver = asked() < nth;
    // A verb that ends well although a statement of it failed has swallowed an error.
    expect({ nth, end }).toEqual({ nth, end: isOver ? 'done' : 'DATABASE_UNAVAILABLE' });
    const left = await look(shop, about);
    expect(isOver ? [stages.at(-1)] : stages).toContain(left);
    // What has come to its end, or was forgotten, is not asked for again.
    if (left !== stages.at(-1) || isRepeatable) await finish(shop, { run, look, stages }, about, left);
    if (isOver) return asked();
  }
}

/** The repeated command, or after an activation without a standby the one that status names. */
async function finish(
  shop: Shop,
  { run, look, stages }: Pick<FailingVerb, 'run' | 'look' | 'stages'>,
  about: string,
  left: string,
): Promise<void> {
  if (left === 'decrypt_only, active') await stageKey(shop.control.context, 'customers', 'test');
  else await run({ ...shop.control.context, patienceMs: 0 }, about);
  expect(await look(shop, about)).toBe(stages.at(-1));
}
