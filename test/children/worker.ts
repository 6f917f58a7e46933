// A worker process that sends a signal to itself at a chosen point of a batch. Arguments: the point, the how-maniest time
// it is reached, the signal. Prints point, pid and signal first; after SIGCONT it goes on from there.
import { startWorker } from '../../src/app.js';

const [point, time, signal] = process.argv.slice(2);
let reached = 0;

const worker = await startWorker({
  environment: process.env,
  name: `worker-${process.pid}`,
  async reachPoint(at) {
    if (at !== point) return;
    reached++;
    if (reached !== Number(time)) return;
    console.log(`reached ${at}: pid ${process.pid} signal ${signal}`);
    process.kill(process.pid, signal);
  },
});
process.once('SIGTERM', () => void worker.stop());
console.log(`working: pid ${process.pid}`);
await worker.ended;
process.exit(0);
