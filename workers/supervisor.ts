// Entry point of a supervisor process.
import { startSupervisorProcess } from '../src/app-runners.js';
import { runUntilSignal } from './run-until-signal.js';

await runUntilSignal((options) => startSupervisorProcess(options));
