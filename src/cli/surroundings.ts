// What the CLI is handed by its entry point: streams, the environment, and openers for everything that only the wiring
// can put together. Nothing in this folder reads `process` for these.
import type { OpenControlFunction } from '../control/context.js';

export type OutputStream = NodeJS.WritableStream & { readonly isTTY?: boolean; readonly columns?: number };

export type InputStream = NodeJS.ReadableStream & { readonly isTTY?: boolean };

export interface DemoOptions {
  readonly rows: number;
  readonly json: boolean;
  readonly keep: boolean;
  readonly environment: NodeJS.ProcessEnv;
}

/** What the command line says of where to answer; the environment says the rest. */
export interface ListenOptions {
  readonly port?: number;
  readonly host?: string;
}

export interface Surroundings {
  readonly version: string;
  readonly environment: NodeJS.ProcessEnv;
  /** Where a passphrase is typed, if it is a terminal. */
  readonly stdin?: InputStream;
  readonly stdout: OutputStream;
  readonly stderr: OutputStream;
  readonly openControl: OpenControlFunction;
  /** Runs in this process and ends it. */
  runWorker(listen: ListenOptions): Promise<unknown>;
  runSupervisor(listen: ListenOptions): Promise<unknown>;
  /** Resolves with the exit code. */
  runDemo(options: DemoOptions): Promise<number>;
  /** Scripts that a child process runs, for `--local`. */
  readonly entries: { readonly worker: string; readonly supervisor: string };
}
