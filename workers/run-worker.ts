// A worker process, however it was started. Where it shares a machine with the application or the database it takes the
// processor time that they leave.
import './small-heap.js';
import { constants, setPriority } from 'node:os';
import { startWorker, type ProcessOptions } from '../src/app-runners.js';
import { runUntilSignal } from './run-until-signal.js';

export async function runWorker(settings: Pick<ProcessOptions, 'listen'> = {}): Promise<void> {
  setPriority(constants.priority.PRIORITY_BELOW_NORMAL);
  await runUntilSignal((options) => startWorker({ ...options, ...settings }));
}
