// The compiled command line as a child process, in a folder of its own with the keyturn.yaml of a shop, and without
// anything that the environment of the test run says about databases, queues and keys.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ConfigFile } from '../../src/config.js';
import { startNode, type Child } from '../support/child.js';

export interface Ended {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface KeyturnProcess {
  /** Starts `keyturn <args>`. */
  start(args: readonly string[], environment?: Readonly<Record<string, string>>): Child;
  /** Runs it to its end. */
  run(...args: string[]): Promise<Ended>;
  runWith(environment: Readonly<Record<string, string>>, ...args: string[]): Promise<Ended>;
  /** Runs it with `input` on its stdin. */
  runFed(input: string, ...args: string[]): Promise<Ended>;
  /** Runs it with --json; fails unless stdout is exactly one JSON object. */
  json(...args: string[]): Promise<Ended & { readonly object: Record<string, unknown> }>;
  /** Everything that was printed so far, by every command. */
  printed(): string;
  /** The path of its keyturn.yaml. */
  readonly config: string;
  remove(): void;
}

const builtHere = join(import.meta.dirname, '..', '..', 'dist', 'workers', 'keyturn.js');
const deadlineMs = 60_000;
const nothingInherited = { REDIS_URL: '', REDIS_URL_FILE: '', DATABASE_DIRECT_URL: '', NO_COLOR: '1' };

export function openKeyturnProcess(
  shop: { environment(): Record<string, string> },
  config: ConfigFile,
  entry = builtHere,
): KeyturnProcess {
  const folder = mkdtempSync(join(tmpdir(), 'keyturn-cli-'));
  // JSON is YAML.
  const configFile = join(folder, 'keyturn.yaml');
  writeFileSync(configFile, JSON.stringify(config));
  const started: Child[] = [];

  const startFed = (args: readonly string[], environment: Readonly<Record<string, string>>, input: string): Child => {
    const child = startNode(entry, {
      cwd: folder,
      args,
      input,
      env: { ...nothingInherited, ...shop.environment(), ...environment },
    });
    started.push(child);
    return child;
  };
  const start: KeyturnProcess['start'] = (args, environment = {}) => startFed(args, environment, '');
  const endOf = async (child: Child): Promise<Ended> => {
    const { code } = await child.waitForExit(deadlineMs);
    return { code, stdout: child.lines.join('\n'), stderr: child.stderr() };
  };
  const runWith: KeyturnProcess['runWith'] = (environment, ...args) => endOf(start(args, environment));
  return {
    start,
    runWith,
    run: (...args) => runWith({}, ...args),
    runFed: (input, ...args) => endOf(startFed(args, {}, input)),
    async json(...args) {
      const ended = await runWith({}, ...args, '--json');
      const object: unknown = JSON.parse(ended.stdout);
      if (typeof object !== 'object' || object === null || Array.isArray(object))
        throw new Error(`${args.join(' ')} printed no object`);
      return { ...ended, object: object as Record<string, unknown> };
    },
    config: configFile,
    printed: () => started.map((child) => `${child.lines.join('\n')}\n${child.stderr()}`).join('\n'),
    remove: () => rmSync(folder, { recursive: true, force: true }),
  };
}
