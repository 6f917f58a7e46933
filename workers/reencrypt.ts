// Entry point of a worker process. Where it shares a machine with the application or the database it takes the processor
// time that they leave.
import './young-generation.js';
import { constants, setPriority } from 'node:os';
import { startWorker } from '../src/app-runners.js';
import { runUntilSignal } from './run-until-signal.js';

setPriority(constants.priority.PRIORITY_BELOW_NORMAL);
await runUntilSignal((options) => startWorker(options));
