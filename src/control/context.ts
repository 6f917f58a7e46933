// What every verb is given. A verb takes the context and its own arguments, returns plain data, and throws KeyturnError;
// doors add only words.
import type { Config, ConfigFile, Environment } from '../config.js';
import { nodeFileSystem, type FileSystem } from '../keys/durable-file.js';
import type { RootKey } from '../keys/roots/root-key.js';
import type { ProposedTarget } from '../rotation/target-text.js';
import type { Database } from '../store/database.js';

export interface ControlContext {
  readonly database: Database;
  readonly config: Config;
  /**
   * Opens root keys by URI, each once per process; of several those that are there, as long as one is. Only verbs that
   * need key material call it.
   */
  readonly openRoots: (uris: readonly string[], cluster: string) => Promise<readonly RootKey[]>;
  /** Lets go of a root key that was replaced; `env:` cannot be read a second time. */
  readonly forgetRoot: (fingerprint: Buffer) => void;
  /** Foreign formats of the user's own; verbs that speak of foreign formats call it first. */
  readonly loadFormats: () => Promise<void>;
  /** What an application's entities ask for, by the path of the module that exports their data source. Throws CONFIG_INVALID. */
  readonly readEntities: (path: string) => Promise<readonly ProposedTarget[]>;
  /** A root key together with its bytes, for a backup that is to hold it. Throws ROOT_KEY_REFUSED where it cannot leave its place. */
  readonly exportRoot: (uri: string, cluster: string) => Promise<{ root: RootKey; bytes: Buffer }>;
  /** What the verb is waiting for, for people who watch. */
  readonly onProgress: (words: string) => void;
  /** How long verbs wait for members and for older transactions before they refuse; default 60 s. */
  readonly patienceMs?: number;
  /** A test makes the disk fail; default: the operating system's. */
  readonly files?: FileSystem;
  /** A crash test ends the process at one of these points. */
  readonly reachPoint?: (point: ControlPoint) => Promise<void>;
}

/** Named points inside a verb. */
export type ControlPoint =
  | 'rot.after_key_insert'
  | 'rot.before_activate'
  | 'rot.after_activate'
  | 'fence.before_ddl'
  | 'fence.after_ddl'
  | 'retire.after_scan'
  | 'retire.before_state'
  | 'destroy.before'
  | 'destroy.after_null_before_audit'
  | 'restore.parse'
  | 'restore.row_n'
  | 'restore.commit'
  | 'root.after_row_n'
  | 'root.before_commit'
  | 'root.after_commit_before_report';

const defaultPatienceMs = 60_000;

export function patienceOf({ patienceMs = defaultPatienceMs, onProgress }: ControlContext): {
  readonly patienceMs: number;
  readonly onProgress: (words: string) => void;
} {
  return { patienceMs, onProgress };
}

export function filesOf({ files = nodeFileSystem }: ControlContext): FileSystem {
  return files;
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
