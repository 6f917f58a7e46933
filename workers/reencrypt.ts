// Entry point of a worker process.
import { startWorker } from '../src/app.js';
import { runUntilSignal } from './run-until-signal.js';

await runUntilSignal((options) => startWorker(options));
