// A process that owns an embedded server, for tests that end it. Prints one JSON line when the server is ready.
// With `own-shutdown` as second argument it has a SIGTERM handler of its own, which takes a while and exits with 7.

import { startEmbeddedPostgres } from '../../src/embedded/postgres.js';

const [dataParent, shutdown] = process.argv.slice(2);
if (dataParent === undefined) throw new Error('usage: owner.js DATA_PARENT [own-shutdown]');

if (shutdown === 'own-shutdown') {
  process.once('SIGTERM', () => {
    setTimeout(() => {
      process.stdout.write('own shutdown finished\n');
      process.exitCode = 7;
      void server.stop();
    }, 50);
  });
}

const server = await startEmbeddedPostgres({ dataParent });
process.stdout.write(`${JSON.stringify({ port: server.port, pid: server.pid, logFile: server.logFile })}\n`);
