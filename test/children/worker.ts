// A worker process that may send a signal to itself at a chosen point of a batch. Arguments, or none: the point, which time
// it is reached, the signal. Prints point, pid and signal first; after SIGCONT it goes on from there.
import { startWorker } from '../../src/app-runners.js';

const [point, time, signal] = process.argv.slice(2);
let reached = 0;

const worker = await startWorker({
  environment: process.env,
  name: `worker-${process.pid}`,
  async reachPoint(at) {
    if (at !== point) return;
    reached++;
    if (reached !== Number(time)) return;
    process.stdout.write(`reached ${at}: pid ${process.pid} signal ${signal}\n`);
    process.kill(process.pid, signal);
  },
});
process.once('SIGTERM', () => void worker.stop());
process.stdout.write(`working: pid ${process.pid}\n`);
await worker.ended;
process.exit(0);
