// Entry point of a worker process.
import './young-generation.js';
import { startWorker } from '../src/app-runners.js';
import { runUntilSignal } from './run-until-signal.js';

await runUntilSignal((options) => startWorker(options));
