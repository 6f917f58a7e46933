// Runs in this process and without any queue: supervisor steps and a worker's visits in turn. It shows that the engine
// needs no queue, and gives tests a place between any two batches.
import { showRun, type RunReport } from '../../src/control/runs.js';
import type { Worked } from '../../src/engine/work-batch.js';
import { isFinished } from '../../src/rotation/run.js';
import {
  openBareWorker,
  superviseByHand,
  type BareWorker,
  type BareWorkerOptions,
  type HandSupervisor,
} from './by-hand.js';
import type { Shop } from './shop.js';
import { until } from './until.js';

export interface DirectRunner extends Pick<BareWorker, 'services' | 'membership'>, Pick<HandSupervisor, 'lead'> {
  /** One supervisor step of the run, then every batch that is due. */
  step(runId: number): Promise<readonly Worked[]>;
  /** Steps until the run is finished or paused. */
  finish(runId: number): Promise<RunReport>;
  /** Throws the first trouble that its member had. */
  close(): Promise<void>;
}

export interface DirectRunOptions extends Omit<BareWorkerOptions, 'onTrouble'> {
  /** Before each batch is worked, for what an application does meanwhile. */
  readonly beforeBatch?: () => Promise<void>;
}

const finishDeadlineMs = 60_000;

export async function startDirectRunner(
  shop: Pick<Shop, 'url' | 'environment' | 'control'>,
  { beforeBatch, ...options }: DirectRunOptions = {},
): Promise<DirectRunner> {
  const troubles: unknown[] = [];
  const worker = await openBareWorker(shop, { ...options, onTrouble: (error) => troubles.push(error) });
  const supervisor = superviseByHand(shop);

  async function step(runId: number): Promise<readonly Worked[]> {
    await supervisor.step(runId);
    const worked: Worked[] = [];
    for (const job of await supervisor.dispatch(50)) {
      await beforeBatch?.();
      worked.push(await worker.work(job));
    }
    return worked;
  }

  return {
    services: worker.services,
    membership: worker.membership,
    lead: supervisor.lead,
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
      await worker.close();
      await supervisor.close();
      if (troubles.length > 0) throw troubles[0];
    },
  };
}
