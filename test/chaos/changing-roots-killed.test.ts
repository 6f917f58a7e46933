// Processes killed with SIGKILL in the middle of a root change, and a fleet that works through a whole one. A change has
// happened or has not; the next start works; nobody who follows the steps sees an operation fail.
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { startMember } from '../../src/app-member.js';
import type { ControlPoint } from '../../src/control/context.js';
import { stageKey } from '../../src/control/keys.js';
import { rootStatus } from '../../src/control/root-status.js';
import { finalizeRoot, prepareRoot, rollbackRoot, rotateRoot } from '../../src/control/roots.js';
import { readConnections } from '../../src/environment.js';
import { startChild, type Child } from '../support/child.js';
import { startRootedApp, stopRootedApp } from '../support/rooted-apps.js';
import { nextUri, openRootedShop, type RootedShop, type Roots } from '../support/roots.js';
import { findDifferences, insertCustomers } from '../support/shop.js';
import { imageOf } from '../support/table-image.js';
import { until } from '../support/until.js';

vi.setConfig({ testTimeout: 120_000 });

const deadlineMs = 30_000;
const advisoryLocks = `SELECT 1 FROM pg_locks
  WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`;
const quiet = { without: [], reason: 'test' };

let rooted: RootedShop;

describe('an operator killed in the middle of a root change', () => {
  beforeAll(async () => {
    rooted = await openRootedShop();
    const keyturn = await rooted.open('present');
    await insertCustomers(rooted.shop, keyturn, [1, 2, 3]);
    await keyturn.close();
    await stageKey(rooted.context, undefined, 'test');
  });
  afterAll(() => rooted.close());

  async function readsWith(roots: Roots): Promise<boolean> {
    const keyturn = await rooted.open(roots).catch(() => undefined);
    if (keyturn === undefined) return false;
    const differences = await findDifferences(rooted.shop, keyturn);
    await keyturn.close();
    return differences.length === 0;
  }

  async function kill(verb: string, to: string, point: ControlPoint): Promise<void> {
    const child = startChild('root-changer', {
      env: rooted.environment('both'),
      onlyEnv: true,
      args: [verb, to, point],
    });
    await child.waitForLine(/^reached/, deadlineMs);
    expect(await child.waitForExit(deadlineMs)).toMatchObject({ signal: 'SIGKILL' });
  }

  async function keyTables(): Promise<unknown> {
    const { root_key, data_key, data_key_wrap, keyring, audit } = await imageOf(rooted.shop, 'keyturn');
    return { root_key, data_key, data_key_wrap, keyring, audit };
  }

  const present = 'env:KEYTURN_ROOT_KEY';
  const steps = [
    { verb: 'prepare', to: nextUri, after: ['present', 'next'] },
    { verb: 'finalize', to: nextUri, after: ['next'] },
    { verb: 'rotate', to: present, after: ['present'] },
    { verb: 'rollback', to: nextUri, after: ['present'] },
  ] as const;

  async function readable(): Promise<Roots[]> {
    const able: Roots[] = [];
    for (const roots of ['present', 'next'] as const) if (await readsWith(roots)) able.push(roots);
    return able;
  }

  test.each(steps)(
    '$verb --to $to leaves what was before it, or what it leaves when it ends, and never between',
    async ({ verb, to, after }) => {
      if (verb === 'rollback')
        await prepareRoot(rooted.control().context, { to, keyring: undefined, reason: undefined });
      const untouched = await keyTables();
      const before = await readable();
      for (const point of ['root.after_row_n', 'root.before_commit'] as const) {
        await kill(verb, to, point);
        // The server notices the dead client, and rolls back, a moment later.
        await until(async () => (await rooted.shop.query(advisoryLocks)).length === 0, {
          what: 'the killed transaction to end',
          deadlineMs,
        });
        expect(await keyTables()).toEqual(untouched);
      }
      expect(await readable()).toEqual(before);
      await kill(verb, to, 'root.after_commit_before_report');
      expect(await readable()).toEqual(after);
      const { context } = rooted.control();
      const repeat = { prepare: prepareRoot, finalize: finalizeRoot, rotate: rotateRoot, rollback: rollbackRoot }[verb];
      expect(await repeat(context, { to, keyring: undefined, ...quiet })).toMatchObject({ outcome: 'unchanged' });
    },
  );
});

describe('a fleet', () => {
  beforeAll(async () => {
    rooted = await openRootedShop();
    const keyturn = await rooted.open('present');
    await insertCustomers(rooted.shop, keyturn, [1, 2, 3, 4, 5, 6]);
    await keyturn.close();
  });
  afterAll(() => rooted.close());

  test('applications that read and write live through prepare, rollback, prepare, rolling restart and finalize without one failed operation', async () => {
    const ids = [1, 2, 3];
    let apps = await Promise.all(ids.map((id) => startRootedApp(rooted, id, 'present')));
    const context = { ...rooted.control().context, patienceMs: 0 };
    const fresh = (): typeof context => ({ ...rooted.control().context, patienceMs: 0 });

    await prepareRoot(context, { to: nextUri, keyring: undefined, reason: 'test' });
    expect(await rollbackRoot(context, quiet)).toMatchObject({ outcome: 'rolled_back' });
    await prepareRoot(fresh(), { to: nextUri, keyring: undefined, reason: 'test' });
    await expect(finalizeRoot(fresh(), quiet)).rejects.toMatchObject({
      code: 'MEMBER_BEHIND',
      details: { members: expect.arrayContaining([expect.stringContaining('application app-1')]) as unknown },
    });

    // One at a time, and one of them with the new root key alone.
    const restarted: Child[] = [];
    const counts: number[] = [];
    for (const [at, app] of apps.entries()) {
      restarted.push(await startRootedApp(rooted, (ids[at] ?? 0) + ids.length, at === 2 ? 'next' : 'both'));
      counts.push(await stopRootedApp(app));
    }
    apps = restarted;
    expect(Math.min(...counts)).toBeGreaterThan(0);
    expect((await rootStatus(context)).change?.laggards).toEqual([]);
    expect(await finalizeRoot(fresh(), quiet)).toMatchObject({ outcome: 'finalized' });

    const after = await Promise.all(apps.map(stopRootedApp));
    expect(Math.min(...after)).toBeGreaterThan(0);
  });

  test('a worker finds a new root key in a file by itself, as soon as it is prepared', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'keyturn-root-'));
    const path = join(folder, 'root.key');
    writeFileSync(path, randomBytes(32), { mode: 0o600 });
    const environment = rooted.environment('next');
    const worker = await startMember({
      connections: readConnections(environment),
      rootsOf: () => undefined,
      environment,
      kind: 'worker',
      name: 'worker',
      keyrings: undefined,
      maxConnections: 2,
      onTrouble: () => undefined,
    });
    try {
      const { context } = rooted.control();
      await prepareRoot(context, { to: `file:${path}`, keyring: undefined, reason: 'test' });
      expect((await rootStatus(context)).change?.laggards).toMatchObject([{ why: 'cannot open root key 3' }]);
      expect(await finalizeRoot({ ...context, patienceMs: deadlineMs }, quiet)).toMatchObject({ outcome: 'finalized' });
    } finally {
      await worker.close();
      rmSync(folder, { recursive: true });
    }
  });
});
