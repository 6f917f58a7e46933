// A run driven by hand: no queue, no loops, no waiting. The test plays supervisor (step, dispatch) and messenger (the jobs
// that `dispatch` answers), and workers without a queue do what a delivered job asks for.
import { randomUUID } from 'node:crypto';
import { Secret } from '../../src/crypto/secret.js';
import { advanceRun } from '../../src/engine/advance-run.js';
import { createForeignOpener } from '../../src/engine/foreign-keys.js';
import { startMembership, type Membership } from '../../src/engine/membership.js';
import { passPoint, type BatchServices, type ReachPoint } from '../../src/engine/services.js';
import { workBatch, type Worked } from '../../src/engine/work-batch.js';
import { openRootKey } from '../../src/keys/roots/open-root-key.js';
import { isFinished } from '../../src/rotation/run.js';
import { dispatchDue } from '../../src/store/batches.js';
import { openDatabase, type Database } from '../../src/store/database.js';
import { createKeyStore, getClusterId, listRootUris } from '../../src/store/keys.js';
import { giveUpLeadership, holdLeadership, type Leadership } from '../../src/store/leadership.js';
import { getRun, type Run } from '../../src/store/runs.js';
import { interpose } from './interposed-database.js';
import type { Delivery } from './redelivery.js';
import type { Shop } from './shop.js';

export interface BareWorker {
  readonly services: BatchServices;
  readonly membership: Membership;
  work(job: Delivery, signal?: AbortSignal): Promise<Worked>;
  close(): Promise<void>;
}

export interface BareWorkerOptions {
  readonly reachPoint?: ReachPoint | undefined;
  /** Between the first and the second statement of each transaction of a batch; hears how the transaction began. */
  readonly betweenStatements?: ((begin: string) => Promise<void>) | undefined;
  readonly writeTimeoutMs?: number | undefined;
  readonly onTrouble?: (error: unknown) => void;
}

export async function openBareWorker(
  shop: Pick<Shop, 'url' | 'environment'>,
  { reachPoint = passPoint, betweenStatements, writeTimeoutMs, onTrouble = () => undefined }: BareWorkerOptions = {},
): Promise<BareWorker> {
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
    openRoots: async (keyring) => {
      const uris = (await listRootUris(database)).get(keyring) ?? [];
      return Promise.all(uris.map((uri) => openRootKey(uri, { cluster, env: shop.environment() })));
    },
    openForeign: createForeignOpener(shop.environment()),
    onTrouble,
  });
  const services: BatchServices = {
    database: betweenStatements === undefined ? database : interpose(database, betweenStatements),
    keyrings: membership,
    memberId: membership.id,
    reachPoint,
    ...(writeTimeoutMs === undefined ? {} : { writeTimeoutMs }),
  };
  return {
    services,
    membership,
    work: (job, signal = new AbortController().signal) => workBatch(services, job, signal),
    async close() {
      await membership.close();
      await database.close();
    },
  };
}

export interface HandSupervisor {
  readonly database: Database;
  /** As its steps hold it. Throws while another supervisor leads. */
  lead(): Promise<Leadership>;
  /** One tick for this run. */
  step(runId: number): Promise<Run>;
  /** Marks due batches, at most `limit`, as dispatched and answers their jobs. */
  dispatch(limit?: number): Promise<Delivery[]>;
  close(): Promise<void>;
}

export function superviseByHand(shop: Pick<Shop, 'url'>): HandSupervisor {
  const database = openDatabase({ url: new Secret(shop.url), maxConnections: 2, applicationName: 'keyturn by hand' });
  const holder = randomUUID();
  let held: Leadership | undefined;

  async function lead(): Promise<Leadership> {
    held = await holdLeadership(database, holder);
    if (held === undefined) throw new Error('another supervisor leads');
    return held;
  }

  return {
    database,
    lead,
    async step(runId) {
      const leadership = await lead();
      await advanceRun({ database, leadership }, await getRun(database, runId));
      return getRun(database, runId);
    },
    dispatch: async (limit = 100) =>
      (await dispatchDue(database, limit)).map(({ id, generation }) => ({ batchId: id, generation })),
    async close() {
      if (held !== undefined) await giveUpLeadership(database, held);
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

export function driveByHand(shop: Shop, runId: number): HandDriven {
  const { database, step, dispatch, close } = superviseByHand(shop);
  return {
    database,
    step: () => step(runId),
    dispatch,
    async finish(worker) {
      // A run of a few batches is through after a handful of steps; follow-ups wait up to 30 s, so they need more.
      for (let steps = 0; steps < 1_000; steps++) {
        const run = await step(runId);
        if (isFinished(run.state)) return run;
        for (const job of await dispatch()) await worker.work(job);
      }
      throw new Error(`run ${runId} does not end`);
    },
    close,
  };
}
