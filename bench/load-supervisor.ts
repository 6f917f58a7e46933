// The supervisor of the load benchmark: as shipped, or without pacing. Argument: the phase.
import { requireDatabaseUrl } from '../src/app-member.js';
import { startSupervisorProcess } from '../src/app-runners.js';
import { readConnections } from '../src/environment.js';
import { openDatabase } from '../src/store/database.js';
import { writePace } from '../src/store/pace.js';

const isPaced = process.argv[2] !== 'unpaced';
const supervisor = await startSupervisorProcess({ environment: process.env, name: 'bench', isPaced });
const database = openDatabase({
  url: requireDatabaseUrl(readConnections(process.env)),
  maxConnections: 1,
  applicationName: 'keyturn bench',
});
// What the paced one wrote last stays in force, and a pace that nobody renews slows the workers down.
const timer = setInterval(() => {
  if (!isPaced)
    writePace(database, { targetWorkers: undefined, nice: 0, reason: undefined, signals: {} }).catch(() => undefined);
}, 500);
process.once('SIGTERM', () => void supervisor.stop());
await supervisor.ended;
clearInterval(timer);
await database.close();
process.exit(0);
