// The story, step by step: a shop with encrypted customers, an application that reads and writes them all the while, a
// new key, the move, the accident, and the checks. Returns what was seen; whether that is enough is for report.ts.
import { setTimeout as delay } from 'node:timers/promises';
import { init } from '../../control/init.js';
import { retire, rotateKey } from '../../control/keys.js';
import { findRunners, orderRun, watchRun, type RunReport } from '../../control/runs.js';
import { isKeyturnError, KeyturnError } from '../../errors.js';
import type { Service } from './crew.js';
import { columnNames, keyringName, shopTables } from './customers.js';
import { countLazyUpgrades, countNaming, countTouchedRows, readKey, readRunCounts } from './evidence.js';
import { guideTraffic, type Applications } from './guide-traffic.js';
import { killWorkerInBatch, readBatchLedger, type BatchLedger, type KilledWorker } from './kill-worker.js';
import type { CheckCounts, ReadCounts, RowRange, WriteCounts } from './messages.js';
import { progressOf, secondsSince, withThousands } from './narrator.js';
import type { Evidence } from './report.js';
import type { Stage } from './stage.js';

const reason = 'demo';

/** A longer run would rest nine tenths of the time beside these applications; at full pace they meet it more often. */
const asEmergency = { isEmergency: true };

export async function tellStory(stage: Stage): Promise<Evidence> {
  const { narrator, context, rows } = stage;
  const oldKeyId = await narrator.step('init', 'Creating the customer table, its keyring and its first data key', () =>
    openShop(stage),
  );
  const people = await narrator.step('start', 'Starting a supervisor, two workers, a writer and a reader', () =>
    startPeople(stage),
  );
  const cells = rows * columnNames.length;
  await narrator.step(
    'fill',
    `Filling in ${withThousands(rows)} customers of several tenants through the library`,
    () => fillShop(stage, people),
  );
  const newKey = await narrator.step('rotate', 'Rotating the data key, with the application at work', () =>
    rotate(stage, people),
  );
  const moved = await narrator.step('move', 'Moving every row to the new key, and killing a worker on the way', () =>
    move(stage, people),
  );
  const verified = await narrator.step(
    'verify',
    'Decrypting every value in the database, with the application at work',
    () => verify(stage, people),
  );
  const retiring = await narrator.step('retire', 'Retiring the old key, with the application at work', () =>
    retireOld(stage, people, oldKeyId),
  );
  const checked = await narrator.step('check', 'Stopping the application and comparing every value with its log', () =>
    checkAll(stage, people),
  );
  const evidence = {
    rows,
    cells,
    queue: stage.queue,
    oldKey: { id: oldKeyId, ...(await readKey(context, oldKeyId)) },
    newKey,
    run: { id: moved.report.run_id, state: moved.report.state },
    killed: moved.killed,
    killedBatch: moved.killedBatch,
    counts: await readRunCounts(context, moved.report.run_id),
    cellsThroughout: cells - columnNames.length * checked.writes.deleted,
    cellsAtEnd: cells + columnNames.length * (checked.writes.inserted - checked.writes.deleted),
    deepVerify: verified.deepVerify,
    writes: { ...checked.writes, whileVerifying: verified.writes, whileRetiring: retiring.writes },
    reads: checked.reads,
    finalCheck: checked.finalCheck,
    lazy: await countLazyUpgrades(context),
    naming: await countNaming(context, newKey.id),
    rowsWithChangedUpdatedAt: await countTouchedRows(context),
    phases: narrator.phases,
  };
  // Since the process began: performance.now() counts from there.
  return { ...evidence, seconds: secondsSince(0) };
}

interface People extends Applications {
  readonly workers: readonly Service[];
}

async function openShop({ context, narrator }: Stage): Promise<number> {
  for (const statement of shopTables) await context.database.query(statement);
  const report = await init(context);
  const oldKeyId = report.keyrings[0]?.activeKeyId;
  if (oldKeyId === undefined) throw new Error('init made no keyring from a config that has one');
  narrator.note(
    `table customer: email, phone and profile.ssn are encrypted under ${(await readKey(context, oldKeyId)).title}, bound to row and tenant`,
  );
  return oldKeyId;
}

async function startPeople(stage: Stage): Promise<People> {
  const supervisor = stage.startSupervisor();
  const workers = [stage.startWorker('worker-1'), stage.startWorker('worker-2')];
  const [writer, reader] = await Promise.all([
    stage.startApp<WriteCounts>('writer'),
    stage.startApp<ReadCounts>('reader'),
  ]);
  stage.narrator.note(
    `${[supervisor, ...workers].map(({ name, pid }) => `${name} (pid ${pid})`).join(', ')}; queue in ${stage.queue}`,
  );
  return { workers, writer, reader };
}

/** Both applications take a half. */
function halvesOf(rows: number): readonly [RowRange, RowRange] {
  const middle = Math.floor(rows / 2);
  return [
    { from: 1, upto: middle },
    { from: middle + 1, upto: rows },
  ];
}

async function fillShop(stage: Stage, { writer, reader, workers }: People): Promise<void> {
  const { context, narrator, rows } = stage;
  const fromMs = performance.now();
  const [first, second] = halvesOf(rows);
  await Promise.all([writer.tasks.fill(first), reader.tasks.fill(second)]);
  narrator.note(`${withThousands(rows * columnNames.length)} values encrypted and stored in ${secondsSince(fromMs)} s`);
  await context.database.query('ANALYZE customer');
  await until('supervisor and workers to be ready', async () => {
    const runners = await findRunners(context);
    return runners.hasSupervisor && runners.workers === workers.length;
  });
}

const startDeadlineMs = 60_000;
const pollMs = 50;

async function until(what: string, isMet: () => Promise<boolean>): Promise<void> {
  const deadline = performance.now() + startDeadlineMs;
  while (!(await isMet())) {
    if (performance.now() > deadline)
      throw new KeyturnError('NO_WORKERS', `waited ${startDeadlineMs / 1_000} s for ${what}, in vain`);
    await delay(pollMs);
  }
}

async function rotate(stage: Stage, { writer, reader }: People): Promise<{ id: number; title: string }> {
  const { context, narrator, rows } = stage;
  await Promise.all([writer.tasks.begin(rows), reader.tasks.begin(rows)]);
  narrator.note('writer and reader are at work from here on, and compare every plaintext with what was written');
  const { key } = await rotateKey(context, { keyring: keyringName, ifOlderThanMs: undefined, reason });
  narrator.note(`${key.title} was staged, held by every member, then activated; everybody writes with it`);
  return { id: key.id, title: key.title };
}

interface Moved {
  readonly report: RunReport;
  readonly killed: KilledWorker;
  readonly killedBatch: BatchLedger;
}

async function move(stage: Stage, people: People): Promise<Moved> {
  const { context, narrator } = stage;
  const run = await orderRun(context, {
    kind: 'reencrypt',
    keyring: keyringName,
    target: undefined,
    scope: undefined,
    deep: false,
    steering: asEmergency,
    reason,
  });
  narrator.note(`run ${run.id} is an emergency run: it does not rest beside the application`);
  const over = new AbortController();
  let killed: KilledWorker | undefined;
  const [report, accident] = await Promise.all([
    watchToEnd(stage, run.id).finally(() => over.abort()),
    killWorkerInBatch(context, run.id, people.workers).then((accident) => {
      killed = accident;
      narrator.note(
        `${accident.worker} (pid ${accident.pid}) killed with SIGKILL in batch ${accident.batchId}, ${accident.slices} slices into it; another may go on with it when its lease runs out, in ${accident.leaseSeconds} s`,
      );
      return accident;
    }),
    guideTraffic(context, run.id, people, { deadMember: () => killed?.memberId, until: over.signal }),
  ]);
  const killedBatch = await readBatchLedger(context, accident);
  narrator.note(`batch ${accident.batchId} was finished by ${killedBatch.finishedBy?.name ?? 'nobody'}`);
  narrator.note(
    `run ${run.id}: ${report.state}, ${withThousands(report.fields_reencrypted)} cells reencrypted, ${withThousands(report.fields_conflicted)} conflicted and visited again`,
  );
  return { report, killed: accident, killedBatch };
}

/** Far beyond the lease of a killed worker, which is the longest time in which nothing has to happen. */
const stallMs = 90_000;

async function watchToEnd({ context, narrator, rows }: Stage, runId: number): Promise<RunReport> {
  let seen = '';
  let movedAtMs = performance.now();
  for await (const report of watchRun(context, runId)) {
    narrator.passing(progressOf(report, rows), report.state);
    if (report.finished_at !== null) return report;
    const position = `${report.state} ${report.slices} ${report.pass_rows}`;
    if (position !== seen) movedAtMs = performance.now();
    seen = position;
    if (report.state === 'paused' || performance.now() - movedAtMs > stallMs) {
      throw new KeyturnError(
        'RUN_INCOMPLETE',
        `run ${runId} stands still in state ${report.state}: ${report.held_back_by ?? 'no cause is known'}`,
        { run: runId },
      );
    }
  }
  throw new Error('a watch ends with a finished or a paused run');
}

/** What the writer had done before `work` and after it. */
async function countingWrites<T>(
  { writer }: People,
  work: () => Promise<T>,
): Promise<{ readonly result: T; readonly before: WriteCounts; readonly after: WriteCounts; readonly writes: number }> {
  const before = await writer.tasks.count();
  const result = await work();
  const after = await writer.tasks.count();
  return { result, before, after, writes: after.acknowledged - before.acknowledged };
}

async function verify(stage: Stage, people: People): Promise<{ writes: number; deepVerify: Evidence['deepVerify'] }> {
  const { context, narrator, rows } = stage;
  const { result, before, after, writes } = await countingWrites(people, async () => {
    const run = await orderRun(context, {
      kind: 'verify',
      keyring: keyringName,
      target: undefined,
      scope: undefined,
      deep: true,
      steering: asEmergency,
      reason,
    });
    return watchToEnd(stage, run.id);
  });
  narrator.note(
    `verify --deep: ${withThousands(result.fields_examined)} cells opened, ${result.state}; ${withThousands(writes)} writes acknowledged meanwhile`,
  );
  // There before it began, and not deleted before it ended.
  const stayed = rows + before.inserted - after.deleted;
  return {
    writes,
    deepVerify: {
      run: result.run_id,
      state: result.state,
      cells: result.fields_examined,
      atLeast: columnNames.length * stayed,
    },
  };
}

async function checkAll(
  stage: Stage,
  { writer, reader }: People,
): Promise<{ reads: ReadCounts; writes: WriteCounts; finalCheck: CheckCounts }> {
  const { narrator, rows } = stage;
  const [writes, reads] = await Promise.all([writer.tasks.end(), reader.tasks.end()]);
  narrator.note(
    `${withThousands(writes.acknowledged)} writes acknowledged, ${withThousands(reads.checked)} cells read and compared, ${reads.mismatches} mismatches`,
  );
  const [first, second] = halvesOf(rows + writes.inserted);
  const [mine, others] = await Promise.all([writer.tasks.check(first), reader.tasks.check(second)]);
  const finalCheck = addCounts(mine, others);
  narrator.note(
    `${withThousands(finalCheck.checked)} cells compared with the log of acknowledged writes, ${finalCheck.mismatches} differ`,
  );
  await Promise.all([writer.release(), reader.release()]);
  return { reads, writes, finalCheck };
}

function addCounts(one: CheckCounts, other: CheckCounts): CheckCounts {
  return {
    checked: one.checked + other.checked,
    mismatches: one.mismatches + other.mismatches,
    examples: [...one.examples, ...other.examples],
    lost: one.lost + other.lost,
  };
}

/** A refusal is not an end: the report shows the key's state, and its proof is missing. */
async function retireOld({ context, narrator }: Stage, people: People, oldKeyId: number): Promise<{ writes: number }> {
  const { result, writes } = await countingWrites(people, async () => {
    try {
      const { proof } = await retire(context, keyringName, String(oldKeyId), reason);
      return `no registered cell names ${proof.key} and no stray envelope was found: retired behind a fence that refuses new ones (undo: keyturn key restore)`;
    } catch (error) {
      if (!isKeyturnError(error) || error.kind !== 'refused') throw error;
      return `not retired: ${error.message}`;
    }
  });
  narrator.note(result);
  narrator.note(`${withThousands(writes)} writes acknowledged meanwhile`);
  return { writes };
}
