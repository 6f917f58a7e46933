// Runs in this process and without any queue: supervisor steps and a worker's visits in turn. It shows that the engine
// needs no queue, and gives tests a place between any two batches.
import { randomUUID } from 'node:crypto';
import { Secret } from '../../src/crypto/secret.js';
import { showRun, type RunReport } from '../../src/control/runs.js';
import { advanceRun } from '../../src/engine/advance-run.js';
import { createForeignOpener } from '../../src/engine/foreign-keys.js';
import { startMembership, type Membership } from '../../src/engine/membership.js';
import { passPoint, type BatchServices, type ReachPoint } from '../../src/engine/services.js';
import { workBatch, type Worked } from '../../src/engine/work-batch.js';
import { openRootKey } from '../../src/keys/roots/open-root-key.js';
import { isFinished } from '../../src/rotation/run.js';
import { dispatchDue } from '../../src/store/batches.js';
import { openDatabase } from '../../src/store/database.js';
import { createKeyStore, getClusterId, listRootUris } from '../../src/store/keys.js';
import { giveUpLeadership, holdLeadership, type Leadership } from '../../src/store/leadership.js';
import { getRun } from '../../src/store/runs.js';
import { interpose } from './interposed-database.js';
import type { Shop } from './shop.js';
import { until } from './until.js';

export interface DirectRunner {
  readonly services: BatchServices;
  readonly membership: Membership;
  /** As its steps hold it. */
  lead(): Promise<Leadership>;
  /** One supervisor step of the run, then every batch that is due. */
  step(runId: number): Promise<readonly Worked[]>;
  /** Steps until the run is finished or paused. */
  finish(runId: number): Promise<RunReport>;
  close(): Promise<void>;
}

export interface DirectRunOptions {
  readonly reachPoint?: ReachPoint;
  /** Before each batch is worked, for what an application does meanwhile. */
  readonly beforeBatch?: () => Promise<void>;
  /** Between the first and the second statement of each transaction of a batch; hears how the transaction began. */
  readonly betweenStatements?: (begin: string) => Promise<void>;
  readonly writeTimeoutMs?: number;
}

const finishDeadlineMs = 60_000;

export async function startDirectRunner(
  shop: Pick<Shop, 'url' | 'environment' | 'control'>,
  options: DirectRunOptions = {},
): Promise<DirectRunner> {
  const database = openDatabase({ url: new Secret(shop.url), maxConnections: 4, applicationName: 'direct run' });
  const cluster = await getClusterId(database);
  const troubles: unknown[] = [];
  const membership = await startMembership({
    database,
    store: createKeyStore(database),
    kind: 'worker',
    name: 'direct',
    version: 'test',
    keyrings: undefined,
    openRoots: async (keyring) => {
      const uris = (await listRootUris(database)).get(keyring) ?? [];
      return Promise.all(uris.map((uri) => openRootKey(uri, { cluster, env: shop.environment() })));
    },
    openForeign: createForeignOpener(shop.environment()),
    onTrouble: (error) => troubles.push(error),
  });
  const services: BatchServices = {
    database: options.betweenStatements === undefined ? database : interpose(database, options.betweenStatements),
    keyrings: membership,
    memberId: membership.id,
    reachPoint: options.reachPoint ?? passPoint,
    ...(options.writeTimeoutMs === undefined ? {} : { writeTimeoutMs: options.writeTimeoutMs }),
  };
  const holder = randomUUID();
  let held: Leadership | undefined;

  async function lead(): Promise<Leadership> {
    held = await holdLeadership(database, holder);
    if (held === undefined) throw new Error('another supervisor leads');
    return held;
  }

  async function step(runId: number): Promise<readonly Worked[]> {
    const leadership = await lead();
    await advanceRun({ database, leadership }, await getRun(database, runId));
    const worked: Worked[] = [];
    for (const due of await dispatchDue(database, 50)) {
      await options.beforeBatch?.();
      const job = { batchId: due.id, generation: due.generation };
      worked.push(await workBatch(services, job, new AbortController().signal));
    }
    return worked;
  }

  return {
    services,
    membership,
    lead,
    step,
    finish: (runId) =>
      until(
        async () => {
          await step(runId);
          const report = await showRun(shop.control.context, runId);
          return (isFinished(report.state) || report.state === 'paused') && report;
        },
        { what: `run ${runId} to end`, deadlineMs: finishDeadlineMs },
      ),
    async close() {
      await membership.close();
      if (held !== undefined) await giveUpLeadership(database, held);
      await database.close();
      if (troubles.length > 0) throw troubles[0];
    },
  };
}
