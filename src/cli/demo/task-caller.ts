// The demo's end of the channel to its writer and reader: one call per task, answered in any order.
import type { ChildProcess } from 'node:child_process';
import type { Answer, AppTasks } from './messages.js';

/** `onFailure` hears of a child that gives up, at a task or by itself; calls under way then stay unanswered. */
export function callTasks<Counts>(
  child: ChildProcess,
  onFailure: (words: string) => void,
): { readonly tasks: AppTasks<Counts>; readonly ready: Promise<void> } {
  const waiting = new Map<number, (result: unknown) => void>();
  let lastId = 0;
  let markReady: () => void = () => undefined;
  const ready = new Promise<void>((resolve) => {
    markReady = resolve;
  });

  child.on('message', (message) => {
    // Both ends are built from messages.ts, so the shape is known.
    const answer = message as Answer;
    if (answer.kind === 'ready') markReady();
    else if (answer.kind === 'failed') onFailure(answer.words);
    else {
      waiting.get(answer.id)?.(answer.result);
      waiting.delete(answer.id);
    }
  });

  function ask<Result>(task: keyof AppTasks<Counts>, argument?: unknown): Promise<Result> {
    const id = ++lastId;
    return new Promise<Result>((resolve) => {
      waiting.set(id, (result) => resolve(result as Result));
      child.send({ id, task, argument }, (error) => {
        if (error !== null) onFailure('it cannot be reached any more');
      });
    });
  }

  return {
    ready,
    tasks: {
      fill: (range) => ask('fill', range),
      begin: (rows) => ask('begin', rows),
      crowd: (where) => ask('crowd', where),
      count: () => ask('count'),
      end: () => ask('end'),
      check: (range) => ask('check', range),
    },
  };
}
