// A supervisor process for tests that kill it. Ends by SIGTERM or worse.
import { startSupervisorProcess } from '../../src/app-runners.js';

const supervisor = await startSupervisorProcess({ environment: process.env, name: `supervisor-${process.pid}` });
process.once('SIGTERM', () => void supervisor.stop());
process.stdout.write(`supervising: pid ${process.pid}\n`);
await supervisor.ended;
process.exit(0);
