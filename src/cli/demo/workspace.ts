// The demo's temporary folder, closed to others: keyturn.yaml, logs, the log of acknowledged writes; for people who stay
// to look around also the root key and the environment to load.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { stringify } from 'yaml';
import { releaseAtExit } from '../../embedded/exit-guard.js';
import { rootKeyVariable, shopConfig } from './customers.js';

export interface Workspace {
  readonly config: string;
  readonly logs: string;
  readonly writeLog: string;
  /** Puts root key and environment into files of mode 0600; the path of the file to load into a shell. */
  writeEnvironment(rootKey: string, variables: Readonly<Record<string, string>>): string;
  remove(): Promise<void>;
}

export function createWorkspace(): Workspace {
  const folder = mkdtempSync(join(tmpdir(), 'keyturn-demo-'));
  const discard = (): void => rmSync(folder, { recursive: true, force: true });
  const withdraw = releaseAtExit(discard);
  const config = join(folder, 'keyturn.yaml');
  const logs = join(folder, 'logs');
  const writeLog = join(folder, 'acknowledged-writes.log');
  writeFileSync(config, stringify(shopConfig), { mode: 0o600 });
  writeFileSync(writeLog, '', { mode: 0o600 });
  mkdirSync(logs);
  return {
    config,
    logs,
    writeLog,
    writeEnvironment(rootKey, variables) {
      const keyFile = join(folder, 'root-key');
      writeFileSync(keyFile, `${rootKey}\n`, { mode: 0o600 });
      const file = join(folder, 'environment');
      const all = { ...variables, KEYTURN_CONFIG: config, [`${rootKeyVariable}_FILE`]: keyFile };
      const lines = Object.entries(all).map(([name, value]) => `export ${name}='${value.replaceAll("'", `'\\''`)}'\n`);
      writeFileSync(file, lines.join(''), { mode: 0o600 });
      return file;
    },
    async remove() {
      discard();
      withdraw();
    },
  };
}
