// Entry point of a worker process.
import { runWorker } from './run-worker.js';

await runWorker();
