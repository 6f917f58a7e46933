// OpenTelemetry of the queue, through bullmq-otel: the API alone, whoever wants traces brings the SDK. BullMQ would put job
// options, results and the messages of errors into its spans; of all that only ids and counts come through here (I7).
import { context, trace } from '@opentelemetry/api';
import type { Attributes, Exception, Span, Telemetry } from 'bullmq';
import { BullMQOtel } from 'bullmq-otel';

export interface Tracing {
  readonly telemetry: Telemetry;
  /** Adds to the span of the job in hand. Ids, counts and names of ours only. */
  note(attributes: Readonly<Record<string, string | number>>): void;
}

export function openTracing(version: string): Tracing {
  const inner: Telemetry = new BullMQOtel({ tracerName: 'keyturn', version });
  return {
    telemetry: {
      contextManager: inner.contextManager,
      tracer: { startSpan: (...given) => reduced(inner.tracer.startSpan(...given)) },
    },
    note: (attributes) => void trace.getSpan(context.active())?.setAttributes(attributes),
  };
}

/** Names of queues and operations, ids, counts and times. */
const harmless: ReadonlySet<string> = new Set([
  'bullmq.queue.name',
  'bullmq.queue.operation',
  'bullmq.job.id',
  'bullmq.job.name',
  'bullmq.job.state',
  'bullmq.job.bulk.count',
  'bullmq.job.attempts.made',
  'bullmq.job.attempt_finished_timestamp',
  'bullmq.job.processed.timestamp',
  'bullmq.worker.id',
  'bullmq.worker.jobs.to.extend.locks',
  'bullmq.worker.stalled.jobs',
  'bullmq.worker.failed.jobs',
]);

function reduced(span: Span): Span {
  return {
    setSpanOnContext: (active: unknown): unknown => span.setSpanOnContext(active),
    setAttribute(key, value) {
      if (harmless.has(key)) span.setAttribute(key, value);
    },
    setAttributes: (attributes) => span.setAttributes(harmlessOf(attributes)),
    addEvent: (name, attributes) => span.addEvent(name, harmlessOf(attributes ?? {})),
    recordException: (exception, time) =>
      span.recordException({ name: classOf(exception), message: codeOf(exception) }, time),
    end: () => span.end(),
  };
}

function harmlessOf(attributes: Attributes): Attributes {
  return Object.fromEntries(Object.entries(attributes).filter(([key]) => harmless.has(key)));
}

function classOf(exception: Exception): string {
  return exception instanceof Error ? exception.constructor.name : 'Error';
}

/** A driver's code (ECONNREFUSED, an SQLSTATE); its message may hold an address or a value. */
function codeOf(exception: Exception): string {
  const code = typeof exception === 'object' ? String(exception.code ?? '') : '';
  return /^[A-Z0-9_]{1,40}$/.test(code) ? code : 'no code';
}
