// Starts a private PostgreSQL for the demo and the tests, with nothing installed but npm packages. Never for
// production: the data is thrown away at stop and the bundled libraries are old.

import { randomBytes } from 'node:crypto';
import { findDataParent, findServerAccount } from './account.js';
import { locateBinaries, prepareBinaries } from './binaries.js';
import { releaseAtExit } from './exit-guard.js';
import { createInstanceFolder, removeInstanceFolder, sweepDeadOwners } from './instance-folder.js';
import { EmbeddedServer, type RunningServer } from './server.js';

export interface EmbeddedPostgresOptions {
  /** Where the data folder is made: the system's temporary folder unless given. */
  readonly dataParent?: string;
  /** Server settings, as in postgresql.conf. Where it listens cannot be changed. */
  readonly settings?: Readonly<Record<string, string>>;
}

export interface EmbeddedPostgres extends RunningServer {
  readonly logFile: string;
  /** Ends the server and removes its data. Safe to call twice. */
  stop(): Promise<void>;
}

/**
 * Resolves once the server has answered an authenticated connection. It runs until `stop` or the end of this process,
 * and keeps this process alive until then. Throws DATABASE_UNAVAILABLE where it cannot run.
 */
export async function startEmbeddedPostgres(options: EmbeddedPostgresOptions = {}): Promise<EmbeddedPostgres> {
  const native = locateBinaries();
  const account = findServerAccount();
  const parent = options.dataParent ?? findDataParent(account);
  await sweepDeadOwners(parent);

  const folder = createInstanceFolder(parent);
  let server: EmbeddedServer | undefined;
  const withdraw = releaseAtExit(() => (server === undefined ? removeInstanceFolder(folder) : server.abandon()));
  const release = async () => {
    await (server === undefined ? removeInstanceFolder(folder) : server.stop());
    withdraw();
  };
  try {
    const binaries = await prepareBinaries({ native, account, copyParent: folder.path });
    const password = randomBytes(24).toString('base64url');
    server = new EmbeddedServer({ binaries, account, folder, password, settings: options.settings ?? {} });
    await server.initialise();
    const running = await server.launch();
    let stopping: Promise<void> | undefined;
    return {
      ...running,
      logFile: folder.log,
      stop: () => {
        stopping ??= release();
        return stopping;
      },
    };
  } catch (error) {
    await release();
    throw error;
  }
}
