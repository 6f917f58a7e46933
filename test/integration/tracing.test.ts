// Traces of jobs, through a tracer provider of the test's own in the place where an operator loads the SDK: what comes through
// is ids, counts and names, also when jobs fail.
import { AsyncLocalStorage } from 'node:async_hooks';
import { randomBytes } from 'node:crypto';
import {
  context,
  ROOT_CONTEXT,
  trace,
  type Context,
  type ContextManager,
  type Span,
  type TracerProvider,
} from '@opentelemetry/api';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { startSupervisorProcess, startWorker, type LongRunning } from '../../src/app-runners.js';
import { wantsTraces } from '../../src/environment.js';
import { openTracing } from '../../src/queue/tracing.js';
import { availableBackends } from '../support/backends.js';
import { findCanaries, textCanary } from '../support/canaries.js';
import { insertCustomers, openShop, type Shop } from '../support/shop.js';
import { until } from '../support/until.js';

vi.setConfig({ testTimeout: 120_000, hookTimeout: 60_000 });

interface Recorded {
  readonly name: string;
  readonly attributes: Record<string, unknown>;
  readonly events: unknown[];
}

/** Keeps every span whole, so that nothing that is given to one is missed. */
function recorder(): { provider: TracerProvider; spans: Recorded[] } {
  const spans: Recorded[] = [];
  const start = (name: string): Span => {
    const recorded: Recorded = { name, attributes: {}, events: [] };
    spans.push(recorded);
    const span: Span = {
      spanContext: () => ({ traceId: '1'.repeat(32), spanId: '2'.repeat(16), traceFlags: 1 }),
      setAttribute(key, value) {
        recorded.attributes[key] = value;
        return span;
      },
      setAttributes(attributes) {
        Object.assign(recorded.attributes, attributes);
        return span;
      },
      addEvent(event, attributes) {
        recorded.events.push([event, attributes]);
        return span;
      },
      addLink: () => span,
      addLinks: () => span,
      setStatus(status) {
        recorded.events.push(status);
        return span;
      },
      updateName: () => span,
      end: () => undefined,
      isRecording: () => true,
      recordException: (exception) => void recorded.events.push(exception),
    };
    return span;
  };
  const tracer = { startSpan: start, startActiveSpan: () => undefined as never };
  return { provider: { getTracer: () => tracer }, spans };
}

function contextManager(): ContextManager {
  const storage = new AsyncLocalStorage<Context>();
  const manager: ContextManager = {
    active: () => storage.getStore() ?? ROOT_CONTEXT,
    with: (active, work, self, ...args) => storage.run(active, () => work.call(self, ...args)),
    bind: (_active, target) => target,
    enable: () => manager,
    disable: () => manager,
  };
  return manager;
}

const { provider, spans } = recorder();

beforeAll(() => {
  trace.setGlobalTracerProvider(provider);
  context.setGlobalContextManager(contextManager());
});
afterAll(() => {
  trace.disable();
  context.disable();
});

test('tracing is off unless KEYTURN_TRACES is 1', () => {
  expect(wantsTraces({ OTEL_EXPORTER_OTLP_ENDPOINT: 'http://127.0.0.1:4318' })).toBe(false);
  expect(wantsTraces({ KEYTURN_TRACES: '0' })).toBe(false);
  expect(wantsTraces({ KEYTURN_TRACES: '1' })).toBe(true);
});

describe.each(availableBackends())('tracing over the %s queue', (backend) => {
  let shop: Shop;
  const running: LongRunning[] = [];
  beforeAll(async () => {
    shop = await openShop({ backend });
    const keyturn = await shop.open();
    await insertCustomers(shop, keyturn, [1, 2, 3]);
    await keyturn.close();
    await shop.rotate();
  });
  afterAll(async () => {
    await Promise.all(running.map((process) => process.stop()));
    await shop.close();
  });

  test(`I7 spans name queue, run and batch, and hold no secret, also when a job fails [${backend}]`, async () => {
    const secret = `CANARY-span-${randomBytes(9).toString('base64url')}`;
    const environment = (): Record<string, string> => ({ ...shop.environment(), KEYTURN_TRACES: '1' });
    let hasThrown = false;
    running.push(
      await startSupervisorProcess({ environment: environment(), name: 'supervisor' }),
      await startWorker({
        environment: environment(),
        name: 'worker',
        async reachPoint(point) {
          if (point !== 'batch.before_ack' || hasThrown) return;
          hasThrown = true;
          throw new Error(secret);
        },
      }),
    );
    const run = await shop.order();
    expect(await shop.waitForRun(run)).toMatchObject({ state: 'succeeded' });
    const traced = await until(
      async () => spans.find(({ attributes }) => attributes['keyturn.run'] === run && 'keyturn.batch' in attributes),
      { what: 'a span of a batch', deadlineMs: 30_000 },
    );
    expect(traced).toMatchObject({
      name: 'process keyturn-batches',
      attributes: { 'bullmq.queue.name': 'keyturn-batches', 'keyturn.end': 'done' },
    });
    expect(spans.some(({ name }) => name === 'addBulk keyturn-batches')).toBe(true);
    expect(hasThrown).toBe(true);
    const never = [
      textCanary('what a job failed with', secret),
      textCanary('the root key', shop.rootKey),
      textCanary('the URL of the database', shop.url),
      textCanary('the job data', '"batchId"'),
    ];
    expect(findCanaries([{ place: 'spans', text: JSON.stringify(spans) }], never)).toEqual([]);
    const names = new Set(spans.flatMap(({ attributes }) => Object.keys(attributes)));
    for (const name of names) expect(name).toMatch(/^(bullmq\.(queue|job|worker)\.|keyturn\.(run|batch|end)$)/);
  });
});

test('I7 of an error a span keeps class and code, and of options, results and reasons nothing', () => {
  spans.length = 0;
  const span = openTracing('1').telemetry.tracer.startSpan('test');
  const error = Object.assign(new TypeError('CANARY'), { code: 'ECONNREFUSED', detail: 'CANARY' });
  span.recordException(error);
  span.recordException('CANARY');
  span.recordException(Object.assign(new Error('CANARY'), { code: 'CANARY in words' }));
  span.addEvent('job failed', { 'bullmq.job.failed.reason': 'CANARY' });
  span.setAttributes({ 'bullmq.job.result': 'CANARY', 'bullmq.job.options': 'CANARY', 'bullmq.job.id': 'b-1-g1' });
  span.setAttribute('bullmq.worker.options', 'CANARY');
  span.end();
  expect(spans).toEqual([
    {
      name: 'test',
      attributes: { 'bullmq.job.id': 'b-1-g1' },
      events: [
        { name: 'TypeError', message: 'ECONNREFUSED' },
        { name: 'Error', message: 'no code' },
        { name: 'Error', message: 'no code' },
        ['job failed', {}],
      ],
    },
  ]);
});
