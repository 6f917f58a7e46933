// The table of a run's moves, held against the database: every arrow, and the refusal of every other pair.
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { isKeyturnError } from '../../src/errors.js';
import { runMoves, type RunState } from '../../src/rotation/run.js';
import { getRun, moveRunIfState } from '../../src/store/runs.js';
import { openShop, type Shop } from '../support/shop.js';

const states = Object.keys(runMoves) as RunState[];

describe('a run in the database', () => {
  let shop: Shop;
  let id: number;

  beforeAll(async () => {
    shop = await openShop();
    id = await shop.order();
  });
  afterAll(() => shop.close());

  const setState = (state: RunState) => shop.query('UPDATE keyturn.run SET state = $2 WHERE id = $1', [id, state]);
  const audited = async (): Promise<unknown[]> =>
    (await shop.query('SELECT action FROM keyturn.audit ORDER BY id')).map((row) => row['action']);
  const move = (run: Awaited<ReturnType<typeof getRun>>, to: RunState): Promise<boolean> =>
    shop.control.context.database.transaction((client) => moveRunIfState(client, run, { to }));

  test.each(states)('I10 that is %s makes its legal moves with one record each, and no other', async (from) => {
    for (const to of states) {
      await setState(from);
      const run = await getRun(shop.control.context.database, id);
      const before = await audited();
      const isLegal = runMoves[from].includes(to);
      const ended = await move(run, to).then(String, (error: unknown) => (isKeyturnError(error) ? error.code : 'bug'));
      expect({ to, ended }).toEqual({ to, ended: isLegal ? 'true' : 'RUN_STATE_REFUSED' });
      expect(await getRun(shop.control.context.database, id)).toMatchObject({ state: isLegal ? to : from });
      expect(await audited()).toEqual(isLegal ? [...before, `run.${to}`] : before);
    }
  });

  test('I10 that has moved meanwhile is not moved again, and leaves no record', async () => {
    await setState('running');
    const run = await getRun(shop.control.context.database, id);
    await setState('verifying');
    const before = await audited();
    expect(await move(run, 'pausing')).toBe(false);
    expect(await getRun(shop.control.context.database, id)).toMatchObject({ state: 'verifying' });
    expect(await audited()).toEqual(before);
  });
});
