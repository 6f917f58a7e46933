// Retirement and destruction of a key against writers that still use it, statement by statement in an order that a seed
// decides. Every actor has a connection of its own; a statement that waits for another's lock goes on waiting while the
// others are moved. In the end either the key is there or nothing names it.
import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import type { ControlContext } from '../../src/control/context.js';
import { approveAndDestroy, askForDestruction } from '../../src/control/destroy-key.js';
import { retire } from '../../src/control/keys.js';
import { isKeyturnError } from '../../src/errors.js';
import type { Database, Queryable } from '../../src/store/database.js';
import { envelopeNaming, passWait, type Person } from './ending-keys.js';
import type { Shop } from './shop.js';

export interface Race {
  readonly shop: Shop;
  readonly ada: Person;
  readonly bob: Person;
}

export interface RaceEnds {
  destroyed: number;
  refused: number;
  /** Late values that a fence turned away. */
  turnedAway: number;
  readonly violations: string[];
}

/** mulberry32: small, and the same everywhere. */
function randomFrom(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}

/** Something that makes one statement when it is moved. */
interface Actor {
  isBusy: boolean;
  isOver: boolean;
  move(): void;
}

/** A turn lasts until its statement has ended, or so long when it waits for a lock. */
const turnMs = 8;
const patienceMs = 250;

/** Whether every end has been seen: a race that never destroys, or never has anything to refuse, shows nothing. */
export function isTelling({ destroyed, refused, turnedAway }: RaceEnds): boolean {
  return destroyed > 0 && refused > 0 && turnedAway > 0;
}

/** At least so many interleavings; more, up to `most`, until every end has been seen. */
export async function raceDestruction(
  race: Race,
  { interleavings, most = interleavings, seed }: { interleavings: number; most?: number; seed: number },
): Promise<RaceEnds> {
  process.stdout.write(`${interleavings} interleavings, seed ${seed}\n`);
  const ends: RaceEnds = { destroyed: 0, refused: 0, turnedAway: 0, violations: [] };
  for (let at = 0; at < interleavings || (at < most && !isTelling(ends)); at++)
    await raceOnce(race, (seed + at) | 0, ends);
  process.stdout.write(
    `${ends.destroyed} destroyed, ${ends.refused} refused, ${ends.turnedAway} late values turned away\n`,
  );
  return ends;
}

async function raceOnce(race: Race, seed: number, ends: RaceEnds): Promise<void> {
  const { shop } = race;
  const random = randomFrom(seed);
  const [before] = await shop.query(
    `SELECT id::int, algorithm FROM keyturn.data_key WHERE state = 'active' AND purpose = 1`,
  );
  const key = { id: Number(before?.['id']), algorithm: 'xaes-256-gcm' as const };
  await shop.rotate();
  const envelope = await envelopeNaming(shop, key);
  const clients = await Promise.all(
    Array.from({ length: 3 }, async () => {
      const client = new pg.Client({ connectionString: shop.url });
      await client.connect();
      return client;
    }),
  );
  const writers = clients.map((client) => writerOf(client, envelope, random, ends));
  const operator = operatorOf(race, key.id);
  try {
    while (!operator.isOver) {
      const free = [operator, ...writers].filter((actor) => !actor.isBusy && !actor.isOver);
      // The operator gets every second turn, so that its many statements come to an end.
      const actor = !operator.isBusy && random(2) === 0 ? operator : free[random(Math.max(1, free.length))];
      actor?.move();
      const until = performance.now() + turnMs;
      while (actor?.isBusy !== false && performance.now() < until) await delay(0);
    }
    await operator.end;
  } finally {
    // All at once: one may be waiting for a lock that another holds until it has committed.
    await Promise.all(writers.map((writer) => writer.end()));
    await Promise.all(clients.map((client) => client.end()));
  }
  const [row] = await shop.query(
    `SELECT state, (SELECT count(*)::int FROM keyturn.data_key_wrap WHERE data_key_id = $1) AS wraps,
       (SELECT count(*)::int FROM customer WHERE starts_with(email, left($2, 20))) AS named FROM keyturn.data_key WHERE id = $1`,
    [key.id, envelope],
  );
  const isGone = row?.['wraps'] === 0;
  if (isGone) ends.destroyed++;
  else ends.refused++;
  if (isGone !== (row?.['state'] === 'destroyed')) ends.violations.push(`seed ${seed}: ${JSON.stringify(row)}`);
  if (isGone && row?.['named'] !== 0)
    ends.violations.push(`seed ${seed}: ${String(row?.['named'])} envelopes name a destroyed key`);
}

/** Begins, writes values under the old key in several ways, ends; now and then takes the fence away and puts it back. */
function writerOf(
  client: pg.Client,
  envelope: string,
  random: (below: number) => number,
  ends: RaceEnds,
): Actor & { end(): Promise<void> } {
  let isOpen = false;
  let rows = 0;
  const writes = [
    `INSERT INTO customer (id, tenant_id, email) VALUES ((random() * 1e15)::bigint, 'a', $1)`,
    `INSERT INTO customer (id, tenant_id, email) VALUES (1, 'a', $1) ON CONFLICT (id) DO UPDATE SET email = excluded.email`,
    'UPDATE customer SET email = $1 WHERE id = (SELECT min(id) FROM customer)',
  ];
  const send = async (text: string, values?: unknown[]): Promise<void> => {
    try {
      await client.query(text, values);
    } catch (error) {
      if ((error as { code?: string }).code === 'KTF01') ends.turnedAway++;
      isOpen = false;
      await client.query('ROLLBACK').catch(() => undefined);
    }
  };
  const next = (): Promise<void> => {
    if (!isOpen) {
      isOpen = true;
      return send(random(2) === 0 ? 'BEGIN ISOLATION LEVEL REPEATABLE READ' : 'BEGIN');
    }
    const choice = random(12);
    if (choice < 2) return send('SELECT count(*) FROM customer');
    if (choice < 5 && rows < 4) {
      rows++;
      return send(writes[random(writes.length)] ?? '', [envelope]);
    }
    if (choice === 5) return send('UPDATE customer SET version = version + 1');
    if (choice === 6 && random(4) === 0)
      return send(
        `ALTER TABLE customer ${random(2) === 0 ? 'DISABLE' : 'ENABLE ALWAYS'} TRIGGER zz_keyturn_fence_insert`,
      );
    isOpen = false;
    return random(4) === 0 ? send('ROLLBACK') : send(random(3) === 0 ? 'DELETE FROM customer; COMMIT' : 'COMMIT');
  };
  let sent: Promise<void> = Promise.resolve();
  const actor = {
    isBusy: false,
    isOver: false,
    move() {
      actor.isBusy = true;
      sent = next().finally(() => {
        actor.isBusy = false;
      });
    },
    end: () => sent.then(() => send('COMMIT')),
  };
  return actor;
}

/** Retires, asks, lets the time pass, approves and destroys: each of its statements waits for a turn. */
function operatorOf({ shop, ada, bob }: Race, keyId: number): Actor & { readonly end: Promise<void> } {
  let release: (() => void) | undefined;
  const turn = async (): Promise<void> => {
    actor.isBusy = false;
    await new Promise<void>((resolve) => {
      release = resolve;
    });
    actor.isBusy = true;
  };
  const gated = (context: ControlContext): ControlContext => ({
    ...context,
    patienceMs,
    database: gate(context.database, turn),
  });
  const work = async (): Promise<void> => {
    const name = String(keyId);
    await retire(gated(ada.context), undefined, name, 'race');
    await askForDestruction(gated(ada.context), undefined, name, { reason: 'race' });
    await passWait(shop);
    await approveAndDestroy(gated(bob.context), undefined, name, await requestOf(shop, keyId), 'race');
  };
  const actor: Actor & { end: Promise<void> } = {
    isBusy: false,
    isOver: false,
    move: () => {
      actor.isBusy = true;
      release?.();
    },
    end: Promise.resolve(),
  };
  actor.end = work()
    .catch((error: unknown) => {
      if (!isKeyturnError(error)) throw error;
    })
    .finally(() => {
      actor.isOver = true;
      actor.isBusy = false;
    });
  return actor;
}

async function requestOf(shop: Shop, keyId: number): Promise<string> {
  const [row] = await shop.query('SELECT id FROM keyturn.destruction WHERE data_key_id = $1 AND outcome IS NULL', [
    keyId,
  ]);
  return String(row?.['id']);
}

function gate(database: Database, turn: () => Promise<void>): Database {
  const gated = (client: Queryable): Queryable => ({
    async query(text, parameters) {
      await turn();
      return client.query(text, parameters);
    },
  });
  return {
    ...gated(database),
    transaction: (work, begin) => database.transaction((client) => work(gated(client)), begin),
    isPooled: () => database.isPooled(),
    close: () => database.close(),
  };
}
