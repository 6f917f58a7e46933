// What every verb is given. A verb takes the context and its own arguments, returns plain data, and throws KeyturnError;
// doors add only words.
import type { Config, ConfigFile, Environment } from '../config.js';
import type { RootKey } from '../keys/roots/root-key.js';
import type { Database } from '../store/database.js';

export interface ControlContext {
  readonly database: Database;
  readonly config: Config;
  /** Opens root keys by URI; each URI once per process. Only verbs that need key material call it. */
  readonly openRoots: (uris: readonly string[], cluster: string) => Promise<readonly RootKey[]>;
  /** A root key together with its bytes, for a backup that is to hold it. Throws ROOT_KEY_REFUSED where it cannot leave its place. */
  readonly exportRoot: (uri: string, cluster: string) => Promise<{ root: RootKey; bytes: Buffer }>;
  /** What the verb is waiting for, for people who watch. */
  readonly onProgress: (words: string) => void;
  /** How long verbs wait for members and for older transactions before they refuse; default 60 s. */
  readonly patienceMs?: number;
}

export interface OpenControl {
  readonly context: ControlContext;
  close(): Promise<void>;
}

/** For verbs that need the database alone. */
export const noConfigFile = 'none';

/** How a door gets its context; the wiring stands in app.ts. `file`: path or content of keyturn.yaml, or `noConfigFile`. */
export type OpenControlFunction = (options: {
  environment: Environment;
  file: string | ConfigFile | undefined;
  onProgress?: (words: string) => void;
}) => OpenControl;
