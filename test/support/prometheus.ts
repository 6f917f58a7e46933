// A real Prometheus: the server and promtool of Debian's package, where they are installed. A test that misses them skips
// visibly, and fails where KEYTURN_REQUIRE_PROMETHEUS is 1. The server gets a folder and a port of its own and ends by pid.
import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { releaseAtExit } from '../../src/embedded/exit-guard.js';
import { findFreePort } from '../../src/embedded/free-port.js';
import { until } from './until.js';

export function hasPrometheus(): boolean {
  const isThere = ['promtool', 'prometheus'].every((name) => spawnSync(name, ['--version']).status === 0);
  if (!isThere && process.env['KEYTURN_REQUIRE_PROMETHEUS'] === '1')
    throw new Error('KEYTURN_REQUIRE_PROMETHEUS is 1, but prometheus and promtool are not both on PATH');
  return isThere;
}

export interface QueryResult {
  readonly metric: Readonly<Record<string, string>>;
  readonly value: number;
}

export interface PrivatePrometheus {
  /** The samples of an expression now. */
  query(expression: string): Promise<readonly QueryResult[]>;
  get(path: string): Promise<unknown>;
  statusOf(path: string): Promise<number>;
  stop(): Promise<void>;
}

const readyDeadlineMs = 30_000;

/** `files`: by name, `prometheus.yml` among them, which may name the others. */
export async function startPrometheus(files: Readonly<Record<string, string>>): Promise<PrivatePrometheus> {
  const folder = mkdtempSync(join(tmpdir(), 'keyturn-prometheus-'));
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);
  const port = await findFreePort();
  const child = spawn(
    'prometheus',
    [
      '--config.file=prometheus.yml',
      '--storage.tsdb.path=data',
      `--web.listen-address=127.0.0.1:${port}`,
      '--log.level=error',
    ],
    { cwd: folder, stdio: ['ignore', 'ignore', 'pipe'] },
  );
  let said = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    said += text;
  });
  const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  const remove = () => rmSync(folder, { recursive: true, force: true });
  const withdraw = releaseAtExit(() => {
    child.kill('SIGKILL');
    remove();
  });
  const stop = async (): Promise<void> => {
    child.kill('SIGTERM');
    await ended;
    remove();
    withdraw();
  };
  const get = async (path: string): Promise<unknown> => {
    const response = await fetch(`http://127.0.0.1:${port}${path}`);
    return response.json();
  };
  await until(
    async () => {
      if (child.exitCode !== null) throw new Error(`prometheus ended: ${said}`);
      return fetch(`http://127.0.0.1:${port}/-/ready`).then(
        (response) => response.ok,
        () => false,
      );
    },
    { what: 'prometheus to be ready', deadlineMs: readyDeadlineMs },
  ).catch(async (error: unknown) => {
    await stop();
    throw error;
  });
  return {
    get,
    statusOf: async (path) => (await fetch(`http://127.0.0.1:${port}${path}`)).status,
    async query(expression) {
      const answer = await get(`/api/v1/query?query=${encodeURIComponent(expression)}`);
      const { data } = answer as { data: { result: { metric: Record<string, string>; value: [number, string] }[] } };
      return data.result.map(({ metric, value }) => ({ metric, value: Number(value[1]) }));
    },
    stop,
  };
}
