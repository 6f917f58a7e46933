// Supervisors killed or frozen in the middle of planning, while the transaction that plans a batch is open: another one
// takes over, and every primary key is covered exactly once.
import { describe, expect, test, vi } from 'vitest';
import { availableBackends } from '../support/backends.js';
import { startChild, type Child } from '../support/child.js';
import { holdInsert } from '../support/held-statement.js';
import { digestOf, findImbalances } from '../support/ledger.js';
import { findMisplanned, findWrongNotes, noteRows, noteTexts, openNoteShop } from '../support/notes.js';
import { passLeadership } from '../support/processes.js';
import type { Shop } from '../support/shop.js';
import { until } from '../support/until.js';

vi.setConfig({ testTimeout: 240_000 });

const deadlineMs = 60_000;

interface HeldPlanner {
  readonly supervisor: Child;
  /** The held statement goes on, in whatever state its process is. */
  letGo(): Promise<void>;
}

/** Starts a supervisor process; resolves once it waits in the middle of planning its third batch. */
async function holdPlanner(shop: Shop): Promise<HeldPlanner> {
  const { waitUntilHeld, letGo } = await holdInsert(shop, 'keyturn.batch', '(SELECT count(*) FROM keyturn.batch) = 3');
  const supervisor = startChild('supervisor', { env: { ...shop.environment(), LOG_LEVEL: 'info' }, onlyEnv: true });
  await waitUntilHeld();
  return { supervisor, letGo };
}

async function leaderOf(shop: Shop): Promise<unknown> {
  return (await shop.query('SELECT holder FROM keyturn.leadership'))[0]?.['holder'];
}

async function expectEachKeyOnce(shop: Shop, run: number, deadline: number): Promise<void> {
  expect(await shop.waitForRun(run, deadline)).toMatchObject({
    state: 'succeeded',
    rows_examined: noteRows,
    rows_updated: noteTexts,
    fields_reencrypted: noteTexts,
    fields_stale: 0,
  });
  expect(await findMisplanned(shop, 1)).toEqual([]);
  expect(await findMisplanned(shop, 2)).toEqual([]);
  expect(await findImbalances(shop)).toEqual([]);
  expect(await findWrongNotes(shop, await shop.open())).toEqual([]);
}

describe.concurrent.each(availableBackends())('replacing the supervisor over the %s queue', (backend) => {
  test(`I4 a supervisor killed while planning is replaced and each primary key is covered once [${backend}]`, async ({
    onTestFinished,
  }) => {
    const shop = await openNoteShop(backend);
    onTestFinished(() => shop.close());
    await shop.rotate();
    const run = await shop.order();
    const { supervisor, letGo } = await holdPlanner(shop);
    supervisor.kill('SIGKILL');
    expect(await supervisor.waitForExit(deadlineMs)).toEqual({ code: null, signal: 'SIGKILL' });
    await letGo();
    expect(await shop.query('SELECT id FROM keyturn.batch')).toHaveLength(2);

    await passLeadership(shop);
    await shop.startSupervisor();
    await shop.startWorker();
    await expectEachKeyOnce(shop, run, deadlineMs);
  });

  test(`a supervisor frozen while planning is replaced, and plans nothing when it wakes up [${backend}]`, async ({
    onTestFinished,
  }) => {
    const shop = await openNoteShop(backend);
    onTestFinished(() => shop.close());
    await shop.rotate();
    const run = await shop.order();
    const { supervisor, letGo } = await holdPlanner(shop);
    supervisor.kill('SIGSTOP');
    await letGo();
    const frozen = await leaderOf(shop);

    // Nothing is turned forward here: the server ends the frozen transaction, and the leadership expires by itself.
    await shop.startSupervisor();
    await shop.startWorker();
    await expectEachKeyOnce(shop, run, deadlineMs);
    const leader = await leaderOf(shop);
    expect(leader).not.toBe(frozen);
    const digest = await digestOf(shop, ['note']);
    supervisor.kill('SIGCONT');
    await until(async () => supervisor.stderr().includes('"msg":"trouble"'), {
      what: 'the woken supervisor to find its transaction gone',
      deadlineMs,
    });
    supervisor.kill('SIGTERM');
    expect(await supervisor.waitForExit(deadlineMs)).toEqual({ code: 0, signal: null });
    expect(await leaderOf(shop)).toBe(leader);
    expect(await digestOf(shop, ['note'])).toBe(digest);
  });
});
