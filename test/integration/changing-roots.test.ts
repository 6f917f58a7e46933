// The root key of a running cluster changes: both roots start processes between prepare and finalize, one before and after;
// a change happens whole or not at all; nothing but the wraps of data keys is written.
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { ControlContext } from '../../src/control/context.js';
import { init } from '../../src/control/init.js';
import { activate, retire, rotateKey, stageKey } from '../../src/control/keys.js';
import { rootStatus } from '../../src/control/root-status.js';
import { finalizeRoot, prepareRoot, rollbackRoot, rotateRoot, type RootChangeReport } from '../../src/control/roots.js';
import { isKeyturnError } from '../../src/errors.js';
import { failAt } from '../support/failing-database.js';
import { insertMember } from '../support/members.js';
import { nextUri, openRootedShop, otherUri, type RootedShop, type Roots } from '../support/roots.js';
import { findDifferences, insertCustomers } from '../support/shop.js';
import { imageOf } from '../support/table-image.js';
import { loseKey } from '../support/without-guards.js';

const quiet = { without: [], reason: undefined };

function toNext(reason?: string): Parameters<typeof rotateRoot>[1] {
  return { to: nextUri, keyring: undefined, without: [], reason };
}

/** Roots with which a process can start and read every value. */
async function startable(rooted: RootedShop): Promise<string[]> {
  const able: string[] = [];
  for (const roots of ['present', 'next', 'both'] as const satisfies readonly Roots[]) {
    try {
      const keyturn = await rooted.open(roots);
      try {
        if ((await findDifferences(rooted.shop, keyturn)).length === 0) able.push(roots);
      } finally {
        await keyturn.close();
      }
    } catch (error) {
      if (!isKeyturnError(error, 'MASTER_KEY_MISMATCH')) throw error;
    }
  }
  return able;
}

/** Of the keys of values; that the audit key has as many is checked along the way. */
async function wrapsOf(rooted: RootedShop): Promise<string[]> {
  const rows = await rooted.shop.query(
    `SELECT purpose, data_key_id || ' under ' || root_key_id AS wrap, root_key_id::int AS root
     FROM keyturn.data_key_wrap JOIN keyturn.data_key ON id = data_key_id ORDER BY data_key_id, root_key_id`,
  );
  const rootsOf = (purpose: number): number[] => [
    ...new Set(rows.filter((row) => row['purpose'] === purpose).map((row) => Number(row['root']))),
  ];
  expect(rootsOf(3)).toEqual(rootsOf(1));
  return rows.filter((row) => row['purpose'] === 1).map(({ wrap }) => String(wrap));
}

/** Every control table; sequences go on when a transaction fails. */
async function tables({ shop }: RootedShop): Promise<unknown> {
  const image = await imageOf(shop, 'keyturn');
  return Object.fromEntries(Object.entries(image).filter(([name]) => !name.endsWith('_seq')));
}

async function recordOf(rooted: RootedShop): Promise<unknown[]> {
  return rooted.shop.query(
    `SELECT action, object, reason FROM keyturn.audit WHERE action LIKE 'root.%' AND action <> 'root.register' ORDER BY id`,
  );
}

let rooted: RootedShop;
let context: ControlContext;

/** A shop with a retired, a decrypt-only, an active and a staged key, and values. */
async function fill(): Promise<void> {
  rooted = await openRootedShop();
  ({ context } = rooted);
  await rooted.shop.rotate();
  const keyturn = await rooted.open('present');
  await insertCustomers(rooted.shop, keyturn, [1, 2, 3]);
  await keyturn.close();
  await retire(context, undefined, 'v1', 'test');
  await rooted.shop.rotate();
  await stageKey(context, undefined, 'test');
}

describe('one root key changes to another', () => {
  beforeAll(fill);
  afterAll(() => rooted.close());

  test('before, only the present root key starts a process', async () => {
    expect(await startable(rooted)).toEqual(['present', 'both']);
    expect(await rootStatus(context)).toMatchObject({
      roots: [{ id: 1, state: 'current', dataKeys: 5, keyrings: ['customers'], uri: 'env:KEYTURN_ROOT_KEY' }],
      change: null,
      next: 'nothing to do',
    });
  });

  test('I10 after prepare either starts one, every key has two wraps, no row is touched, one record says so', async () => {
    const rows = await imageOf(rooted.shop, 'public');
    const report = await prepareRoot(context, toNext('yearly'));
    expect(report).toMatchObject({ outcome: 'prepared', dataKeys: 5, keyrings: ['customers'], root: { id: 2 } });
    expect(await wrapsOf(rooted)).toEqual([1, 2, 3, 4].flatMap((key) => [`${key} under 1`, `${key} under 2`]));
    expect(await startable(rooted)).toEqual(['present', 'next', 'both']);
    expect(await imageOf(rooted.shop, 'public')).toEqual(rows);
    expect(await recordOf(rooted)).toEqual([{ action: 'root.prepare', object: 'root key 2', reason: 'yearly' }]);
    expect(await rootStatus(context)).toMatchObject({
      roots: [
        { id: 1, state: 'current' },
        { id: 2, state: 'next', dataKeys: 5 },
      ],
      change: { from: { id: 1 }, to: { id: 2 }, laggards: [] },
      next: 'keyturn root finalize',
    });
  });

  test('preparing again writes nothing and says so; another change is refused', async () => {
    const before = await tables(rooted);
    expect(await prepareRoot(rooted.control().context, toNext())).toMatchObject({
      outcome: 'unchanged',
      note: expect.stringContaining('is prepared already') as string,
      next: 'keyturn root finalize',
    });
    await expect(prepareRoot(context, { ...toNext(), to: otherUri })).rejects.toMatchObject({
      code: 'ROOT_CHANGE_REFUSED',
      kind: 'refused',
      message: `a change from root key 1 to 2 (${nextUri}) is prepared; end it with keyturn root finalize or keyturn root rollback before another begins`,
    });
    expect(await tables(rooted)).toEqual(before);
  });

  test('a new data key gets a wrap under both; a process with one of them does not make one', async () => {
    await activate(context, undefined, undefined, 'test');
    // The next standby was made with both at once; here is none.
    await loseKey(rooted.shop.query, 5);
    const lacking = rooted.control('present').context;
    await expect(stageKey(lacking, undefined, undefined)).rejects.toMatchObject({
      code: 'ROOT_KEY_UNAVAILABLE',
      message: expect.stringContaining('must be wrapped under root key 2, which this process does not hold') as string,
    });
    const { key } = await stageKey(context, undefined, 'test');
    expect((await wrapsOf(rooted)).slice(-2)).toEqual([`${key.id} under 1`, `${key.id} under 2`]);
    expect(await startable(rooted)).toEqual(['present', 'next', 'both']);
  });

  test('finalize names a live member that cannot open the new root and writes nothing; --without leaves it behind', async () => {
    const id = await insertMember(rooted.shop, { name: 'billing', holds: [1], writes: 1 });
    await rooted.shop.query('UPDATE keyturn.member_keyring SET root_key_ids = $1 WHERE member_id = $2', [[1], id]);
    const before = await tables(rooted);
    await expect(finalizeRoot(context, quiet)).rejects.toMatchObject({
      code: 'MEMBER_BEHIND',
      message: `not every live member could start again after finalize: application billing (pid 42 on elsewhere) cannot open root key 2; give it ${nextUri} and restart it, then repeat the command (keyturn root prepare gives everybody the time), or leave it behind with --without NAME --reason TEXT`,
    });
    expect(await tables(rooted)).toEqual(before);
    await expect(rollbackRoot(context, { without: ['other'], reason: undefined })).resolves.toMatchObject({
      outcome: 'rolled_back',
    });
    expect(await startable(rooted)).toEqual(['present', 'both']);
    // The refused attempt to make a key has used up id 6.
    expect(await wrapsOf(rooted)).toEqual([1, 2, 3, 4, 7].map((key) => `${key} under 1`));
    ({ context } = rooted.control());
    await prepareRoot(context, toNext());
    expect(await finalizeRoot(context, { without: ['billing'], reason: 'gone' })).toMatchObject({
      outcome: 'finalized',
      dataKeys: 6,
    });
    await rooted.shop.query('DELETE FROM keyturn.member WHERE id = $1', [id]);
    expect((await recordOf(rooted)).at(-1)).toEqual({
      action: 'root.finalize',
      object: 'root key 2',
      reason: 'gone',
    });
  });

  test('afterwards only the new root key starts a process; the former one ends with MasterKeyMismatch', async () => {
    expect(await startable(rooted)).toEqual(['next', 'both']);
    await expect(rooted.open('present')).rejects.toMatchObject({
      message: expect.stringMatching(/^MasterKeyMismatch/) as string,
    });
    expect(await rootStatus(context)).toMatchObject({
      roots: [
        { id: 1, state: 'former', dataKeys: 0 },
        { id: 2, state: 'current', dataKeys: 6 },
      ],
      change: null,
    });
    expect(await rooted.shop.query('SELECT root_uris FROM keyturn.keyring')).toEqual([{ root_uris: [nextUri] }]);
  });

  test('every step repeated afterwards writes nothing and succeeds', async () => {
    const before = await tables(rooted);
    const onlyNext = rooted.control('next').context;
    const again: readonly (() => Promise<RootChangeReport>)[] = [
      () => prepareRoot(onlyNext, toNext()),
      () => finalizeRoot(onlyNext, quiet),
      () => rollbackRoot(onlyNext, quiet),
      () => rotateRoot(onlyNext, toNext()),
    ];
    for (const step of again)
      expect(await step()).toMatchObject({
        outcome: 'unchanged',
        root: { id: 2 },
        note: expect.stringContaining('nothing was written') as string,
      });
    expect(await tables(rooted)).toEqual(before);
  });

  test('the process that finalized has let the former root key go: nothing new can come under it', async () => {
    await expect(
      context.openRoots(['env:KEYTURN_ROOT_KEY'], '00112233-4455-6677-8899-aabbccddeeff'),
    ).rejects.toMatchObject({
      code: 'ROOT_KEY_UNAVAILABLE',
    });
  });

  test('turned back, the former root key has its old number and the new one opens nothing', async () => {
    const back = rooted.control().context;
    expect(await rotateRoot(back, { ...toNext('back'), to: 'env:KEYTURN_ROOT_KEY' })).toMatchObject({
      outcome: 'finalized',
      root: { id: 1, state: 'current' },
    });
    expect(await startable(rooted)).toEqual(['present', 'both']);
    const keyturn = await rooted.open('present');
    expect(await findDifferences(rooted.shop, keyturn)).toEqual([]);
    await keyturn.close();
  });
});

describe('a root change that cannot happen', () => {
  beforeAll(fill);
  afterAll(() => rooted.close());

  async function unchangedAfter(attempt: () => Promise<unknown>): Promise<unknown> {
    const before = await tables(rooted);
    const error: unknown = await attempt().then(
      () => 'succeeded',
      (thrown: unknown) => thrown,
    );
    expect(await tables(rooted)).toEqual(before);
    return error;
  }

  test('the wrong present root key ends with MasterKeyMismatch before anything is written', async () => {
    const other = rooted.control().context;
    const wrong: ControlContext = { ...other, openRoots: (_, cluster) => other.openRoots([otherUri], cluster) };
    expect(await unchangedAfter(() => rotateRoot(wrong, { ...toNext(), to: nextUri }))).toMatchObject({
      code: 'MASTER_KEY_MISMATCH',
    });
  });

  test('one damaged wrap, of a retired key, stops all of it', async () => {
    const flip = `UPDATE keyturn.data_key_wrap SET blob = set_byte(blob, 40, get_byte(blob, 40) # 1) WHERE data_key_id = 1`;
    await rooted.shop.query(flip);
    expect(await unchangedAfter(() => prepareRoot(context, toNext()))).toMatchObject({
      code: 'UNWRAP_FAILED',
      details: { keyId: 1 },
    });
    await rooted.shop.query(flip);
  });

  test('finalize opens every data key with the new root key first: one that does not open keeps the former root key', async () => {
    const fresh = rooted.control().context;
    await prepareRoot(fresh, toNext());
    const flip = `UPDATE keyturn.data_key_wrap SET blob = set_byte(blob, 40, get_byte(blob, 40) # 1) WHERE data_key_id = 1 AND root_key_id <> 1`;
    await rooted.shop.query(flip);
    expect(await unchangedAfter(() => finalizeRoot(fresh, quiet))).toMatchObject({
      code: 'UNWRAP_FAILED',
      details: { keyId: 1 },
    });
    await rooted.shop.query(flip);
    expect(await rollbackRoot(fresh, quiet)).toMatchObject({ outcome: 'rolled_back' });
  });

  test('a live member refuses rotate, which has no time to give it', async () => {
    const keyturn = await rooted.open('present', 'shop');
    expect(await unchangedAfter(() => rotateRoot(context, toNext()))).toMatchObject({ code: 'MEMBER_BEHIND' });
    await keyturn.close();
  });

  test('wraps of different times: a keyring that no single root opens is refused loudly, also by a process with both', async () => {
    await prepareRoot(context, toNext());
    await rooted.shop.query(
      'DELETE FROM keyturn.data_key_wrap WHERE (data_key_id = 2 AND root_key_id = 1) OR (data_key_id = 3 AND root_key_id <> 1)',
    );
    for (const roots of ['present', 'next', 'both'] as const)
      await expect(rooted.open(roots)).rejects.toMatchObject({
        code: 'UNWRAP_FAILED',
        message: expect.stringContaining('no single root key opens every data key of keyring customers') as string,
      });
    expect(await unchangedAfter(() => finalizeRoot(context, quiet))).toMatchObject({ code: 'ROOT_CHANGE_REFUSED' });
    expect(await unchangedAfter(() => rollbackRoot(context, quiet))).toMatchObject({ code: 'ROOT_CHANGE_REFUSED' });
    // Each key still opens under one of the two: preparing again gives it both.
    await prepareRoot(context, toNext());
    expect(await rollbackRoot(context, quiet).catch((error: unknown) => error)).toMatchObject({
      code: 'ROOT_CHANGE_REFUSED',
    });
    expect(await finalizeRoot(context, quiet)).toMatchObject({ outcome: 'finalized', dataKeys: 5 });
  });
});

describe('restored tables', () => {
  beforeEach(fill);
  afterEach(() => rooted.close());

  test('the wraps of before a change are restored alone: the former root key starts processes again', async () => {
    await rooted.shop.query('CREATE TABLE kept AS SELECT * FROM keyturn.data_key_wrap');
    await rotateRoot(context, toNext());
    // In one transaction: no key is without a wrap at its end.
    await rooted.shop.query('DELETE FROM keyturn.data_key_wrap; INSERT INTO keyturn.data_key_wrap SELECT * FROM kept');
    expect(await startable(rooted)).toEqual(['present', 'both']);
    expect(await rootStatus(context)).toMatchObject({
      roots: [
        { id: 1, state: 'current' },
        { id: 2, state: 'former' },
      ],
    });
    // And can be changed again.
    expect(await rotateRoot(rooted.control().context, toNext())).toMatchObject({
      outcome: 'finalized',
      root: { id: 2 },
    });
  });

  test('a token of another time is written anew when every data key opens, and refused when one does not', async () => {
    const damage = `UPDATE keyturn.root_key SET verification_token = set_byte(verification_token, 9, get_byte(verification_token, 9) # 1),
      fingerprint = set_byte(fingerprint, 9, get_byte(fingerprint, 9) # 1)`;
    const token = (): Promise<unknown> =>
      rooted.shop.query('SELECT verification_token, fingerprint FROM keyturn.root_key');
    await rooted.shop.query(damage);
    const damaged = await token();
    expect(await startable(rooted)).toEqual(['present', 'both']);
    expect(await token()).toEqual(damaged);
    await rooted.shop.query(
      `UPDATE keyturn.data_key_wrap SET blob = set_byte(blob, 40, get_byte(blob, 40) # 1) WHERE data_key_id = 3`,
    );
    await expect(init(rooted.control('present').context)).rejects.toMatchObject({ code: 'MASTER_KEY_MISMATCH' });
    expect(await token()).toEqual(damaged);
    await rooted.shop.query(
      `UPDATE keyturn.data_key_wrap SET blob = set_byte(blob, 40, get_byte(blob, 40) # 1) WHERE data_key_id = 3`,
    );
    expect((await init(rooted.control('present').context)).repairedRoots).toHaveLength(1);
    expect(await token()).not.toEqual(damaged);
    expect((await init(rooted.control('present').context)).repairedRoots).toEqual([]);
    expect(await recordOf(rooted)).toEqual([{ action: 'root.repair', object: 'root key 1', reason: null }]);
    expect(await startable(rooted)).toEqual(['present', 'both']);
  });
});

describe('rotators at once', () => {
  beforeAll(fill);
  afterAll(() => rooted.close());

  test('two to the same root: one changes it, the other says that it is done; two to different ones: one is refused', async () => {
    const same = await Promise.all(
      [0, 1].map(() => rotateRoot({ ...rooted.control().context, patienceMs: 200 }, toNext())),
    );
    expect(same.map(({ outcome }) => outcome).toSorted()).toEqual(['finalized', 'unchanged']);
    const different = await Promise.allSettled(
      ['env:KEYTURN_ROOT_KEY', otherUri].map((to) => prepareRoot(rooted.control().context, { ...toNext(), to })),
    );
    expect(different.map(({ status }) => status).toSorted()).toEqual(['fulfilled', 'rejected']);
    expect(different.find(({ status }) => status === 'rejected')).toMatchObject({
      reason: { code: 'ROOT_CHANGE_REFUSED' },
    });
    await rollbackRoot(rooted.control().context, quiet);
    expect(await startable(rooted)).toEqual(['next', 'both']);
  });

  test('a data key made while the root changes is not left behind', async () => {
    const other = rooted.control().context;
    const [changed] = await Promise.all([
      prepareRoot(rooted.control().context, { ...toNext(), to: 'env:KEYTURN_ROOT_KEY' }),
      rotateKey({ ...other, patienceMs: 200 }, { keyring: undefined, ifOlderThanMs: undefined, reason: 'race' }).catch(
        (error: unknown) => {
          // It began before the change, and holds one of the two root keys only.
          if (!isKeyturnError(error, 'ROOT_KEY_UNAVAILABLE')) throw error;
        },
      ),
    ]);
    expect(changed).toMatchObject({ outcome: 'prepared' });
    expect(
      await rooted.shop.query(
        'SELECT data_key_id FROM keyturn.data_key_wrap GROUP BY data_key_id HAVING count(*) <> 2',
      ),
    ).toEqual([]);
    expect(await startable(rooted)).toEqual(['present', 'next', 'both']);
  });
});

describe('a statement that fails', () => {
  beforeAll(fill);
  afterAll(() => rooted.close());

  const steps: readonly {
    step: string;
    begin?: () => Promise<RootChangeReport>;
    run: (context: ControlContext) => Promise<RootChangeReport>;
    after: string[];
  }[] = [
    { step: 'prepare', run: (with_) => prepareRoot(with_, toNext()), after: ['present', 'next', 'both'] },
    { step: 'rollback', run: (with_) => rollbackRoot(with_, quiet), after: ['present', 'both'] },
    {
      step: 'finalize',
      begin: () => prepareRoot(rooted.control().context, toNext()),
      run: (with_) => finalizeRoot(with_, quiet),
      after: ['next', 'both'],
    },
    {
      step: 'rotate, after a leak',
      run: (with_) => rotateRoot(with_, { ...toNext(), to: otherUri, isLeak: true }),
      after: [],
    },
  ];

  test.each(steps)(
    'whichever statement of $step fails, everything is as before, and repeated it succeeds',
    async ({ begin, run, after }) => {
      await begin?.();
      const before = await tables(rooted);
      const control = rooted.control().context;
      let nth = 1;
      for (; ; nth++) {
        const { database, asked } = failAt(control.database, nth);
        const end: unknown = await run({ ...control, database, patienceMs: 0 }).then(
          () => 'done',
          (thrown: unknown) => (isKeyturnError(thrown, 'DATABASE_UNAVAILABLE') ? thrown.message : thrown),
        );
        // A change that ends well although a statement of it failed has swallowed an error.
        const isOver = asked() < nth;
        expect(end).toBe(isOver ? 'done' : `statement ${nth} fails because a test says so`);
        if (isOver) break;
        expect(await tables(rooted)).toEqual(before);
      }
      expect(nth).toBeGreaterThan(10);
      expect(await startable(rooted)).toEqual(after);
    },
  );
});
