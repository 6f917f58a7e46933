// The supervisor of the load benchmark: as shipped, or with its pacing left out. Argument: the phase.
import { startSupervisorProcess } from '../src/app-runners.js';

const supervisor = await startSupervisorProcess({ environment: process.env, name: 'bench' });
process.once('SIGTERM', () => void supervisor.stop());
await supervisor.ended;
process.exit(0);
