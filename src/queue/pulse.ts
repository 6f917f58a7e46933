// The pulse of a BullMQ worker, felt where BullMQ reports its steps: every fetch, every job and every renewed lock begins and
// ends a span. From it the process knows that its fetch loop turns and that the queue answers, without a connection of its
// own. Spans go on to a tracer where there is one.
import type { Exception, Span, Telemetry } from 'bullmq';

export interface Pulse {
  readonly telemetry: Telemetry;
  /** Monotonic milliseconds: when the loop last fetched or finished a job, well or not. */
  readonly movedAtMs: number;
  /** Monotonic milliseconds: when a step of any kind last ended without an error. */
  readonly answeredAtMs: number;
}

/** Steps of the loop itself; locks are renewed and stalled jobs looked for beside it, also when it stands still. */
const loopSteps = /^(getNextJob|process)\b/;

export function feelPulse(tracing: Telemetry | undefined): Pulse {
  let movedAtMs = performance.now();
  let answeredAtMs = -Infinity;

  function felt(inner: Span | undefined, isOfLoop: boolean): Span {
    let hasFailed = false;
    return {
      setSpanOnContext: (context: unknown): unknown =>
        inner === undefined ? context : inner.setSpanOnContext(context),
      setAttribute: (key, value) => inner?.setAttribute(key, value),
      setAttributes: (attributes) => inner?.setAttributes(attributes),
      addEvent: (name, attributes) => inner?.addEvent(name, attributes),
      recordException(exception: Exception, time) {
        hasFailed = true;
        inner?.recordException(exception, time);
      },
      end() {
        if (isOfLoop) movedAtMs = performance.now();
        if (!hasFailed) answeredAtMs = performance.now();
        inner?.end();
      },
    };
  }

  return {
    telemetry: {
      tracer: {
        startSpan: (name, options, active) =>
          felt(tracing?.tracer.startSpan(name, options, active), loopSteps.test(name)),
      },
      contextManager: tracing?.contextManager ?? noContext,
    },
    get movedAtMs() {
      return movedAtMs;
    },
    get answeredAtMs() {
      return answeredAtMs;
    },
  };
}

const noContext: Telemetry['contextManager'] = {
  with: (_context, work) => work() as ReturnType<typeof work>,
  active: () => undefined,
  getMetadata: () => '',
  fromMetadata: (active: unknown) => active,
};
