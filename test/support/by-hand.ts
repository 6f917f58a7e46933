// A run driven by hand: no queue, no loops, no waiting. The test plays supervisor (step, dispatch) and messenger (the jobs
// that `dispatch` answers), and workers without a queue do what a delivered job asks for.
import { randomUUID } from 'node:crypto';
import { Secret } from '../../src/crypto/secret.js';
import { advanceRun } from '../../src/engine/advance-run.js';
import { startMembership } from '../../src/engine/membership.js';
import { passPoint, type BatchServices, type ReachPoint } from '../../src/engine/services.js';
import { workBatch, type Worked } from '../../src/engine/work-batch.js';
import { openRootKey } from '../../src/keys/roots/open-root-key.js';
import { isFinished } from '../../src/rotation/run.js';
import { dispatchDue } from '../../src/store/batches.js';
import { openDatabase, type Database } from '../../src/store/database.js';
import { createKeyStore, getClusterId } from '../../src/store/keys.js';
import { holdLeadership } from '../../src/store/leadership.js';
import { getRun, type Run } from '../../src/store/runs.js';
import type { Delivery } from './redelivery.js';
import type { Shop } from './shop.js';

export interface BareWorker {
  readonly services: BatchServices;
  work(job: Delivery, signal?: AbortSignal): Promise<Worked>;
  close(): Promise<void>;
}

export async function openBareWorker(shop: Shop, reachPoint: ReachPoint = passPoint): Promise<BareWorker> {
  const database = openDatabase({
    url: new Secret(shop.url),
    maxConnections: 3,
    applicationName: 'keyturn bare worker',
  });
  const cluster = await getClusterId(database);
  const membership = await startMembership({
    database,
    store: createKeyStore(database),
    kind: 'worker',
    name: 'bare worker',
    version: 'test',
    keyrings: undefined,
    openRoots: async () => [await openRootKey('env:KEYTURN_ROOT_KEY', { cluster, env: shop.environment() })],
    onTrouble: () => undefined,
  });
  const services = {
    database,
    keyrings: membership,
    memberId: membership.id,
    reachPoint,
  };
  return {
    services,
    work: (job, signal = new AbortController().signal) => workBatch(services, job, signal),
    async close() {
      await membership.close();
      await database.close();
    },
  };
}

export interface HandDriven {
  readonly database: Database;
  /** One tick of the supervisor for this run. */
  step(): Promise<Run>;
  /** Marks due batches, at most `limit`, as dispatched and answers their jobs. */
  dispatch(limit?: number): Promise<Delivery[]>;
  /** Steps, dispatches and works until the run is finished. */
  finish(worker: BareWorker): Promise<Run>;
  close(): Promise<void>;
}

export async function driveByHand(shop: Shop, runId: number): Promise<HandDriven> {
  const database = openDatabase({ url: new Secret(shop.url), maxConnections: 2, applicationName: 'keyturn by hand' });
  const holder = randomUUID();

  async function step(): Promise<Run> {
    const leadership = await holdLeadership(database, holder);
    if (leadership === undefined) throw new Error('another supervisor leads');
    await advanceRun({ database, leadership }, await getRun(database, runId));
    return getRun(database, runId);
  }

  async function dispatch(limit = 100): Promise<Delivery[]> {
    return (await dispatchDue(database, limit)).map(({ id, generation }) => ({ batchId: id, generation }));
  }

  return {
    database,
    step,
    dispatch,
    async finish(worker) {
      // A run of a few batches is through after a handful of steps; follow-ups wait up to 30 s, so they need more.
      for (let steps = 0; steps < 1_000; steps++) {
        const run = await step();
        if (isFinished(run.state)) return run;
        for (const job of await dispatch()) await worker.work(job);
      }
      throw new Error(`run ${runId} does not end`);
    },
    close: () => database.close(),
  };
}
