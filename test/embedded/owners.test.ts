// What becomes of a server whose owner ends: by a signal, by a shutdown of its own, or killed. The owners are real
// processes, compiled here so that these tests need no other build.

import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { startEmbeddedPostgres } from '../../src/embedded/postgres.js';
import { type Child, startNode } from '../support/child.js';
import { until } from '../support/until.js';
import { type DataParent, makeDataParent } from './data-parent.js';
import { isListening } from './listening.js';

const checkout = join(import.meta.dirname, '..', '..');
const ownerScript = join(checkout, 'dist', 'embedded-owner', 'test', 'embedded', 'owner.js');
const deadlineMs = 10_000;

let parent: DataParent;

beforeAll(() => {
  execFileSync(
    process.execPath,
    [join(checkout, 'node_modules', 'typescript', 'bin', 'tsc'), '-p', join(import.meta.dirname, 'tsconfig.json')],
    { stdio: 'inherit' },
  );
  parent = makeDataParent();
});

afterAll(() => {
  parent?.remove();
});

async function startOwner(...args: readonly string[]): Promise<{ child: Child; port: number }> {
  const child = startNode(ownerScript, { args: [parent.path, ...args] });
  const [line] = await child.waitForLine(/^\{.*\}$/, 20_000);
  const { port } = JSON.parse(line);
  expect(await isListening(port)).toBe(true);
  return { child, port };
}

async function untilNobodyListens(port: number): Promise<void> {
  await until(async () => !(await isListening(port)), { what: `port ${port} to close`, deadlineMs });
}

test.for(['SIGTERM', 'SIGINT'] as const)('%s to an owner leaves neither server nor data behind', async (signal) => {
  const { child, port } = await startOwner();
  child.kill(signal);
  expect(await child.waitForExit(deadlineMs)).toEqual({ code: null, signal });
  expect(await isListening(port)).toBe(false);
  expect(parent.list()).toEqual([]);
});

test('a signal while the data folder is still being filled leaves nothing behind either', async () => {
  const child = startNode(ownerScript, { args: [parent.path] });
  const filling = async () => parent.list().some((name) => existsSync(join(parent.path, name, 'data', 'base', '1')));
  await until(filling, { what: 'the first database to be made', deadlineMs });
  child.kill('SIGTERM');
  expect(await child.waitForExit(deadlineMs)).toEqual({ code: null, signal: 'SIGTERM' });
  expect(child.stderr()).toBe('');
  expect(parent.list()).toEqual([]);
});

test("an owner's own shutdown runs to its end", async () => {
  const { child, port } = await startOwner('own-shutdown');
  child.kill('SIGTERM');
  expect(await child.waitForExit(deadlineMs)).toEqual({ code: 7, signal: null });
  expect(child.lines).toContain('own shutdown finished');
  expect(await isListening(port)).toBe(false);
  expect(parent.list()).toEqual([]);
});

test('the next start sweeps what a killed owner left, and leaves a live owner alone', async () => {
  const [dead, live] = await Promise.all([startOwner(), startOwner()]);
  dead.child.kill('SIGKILL');
  await dead.child.waitForExit(deadlineMs);
  expect(await isListening(dead.port)).toBe(true);
  expect(parent.list()).toHaveLength(2);

  const next = await startEmbeddedPostgres({ dataParent: parent.path });
  await untilNobodyListens(dead.port);
  expect(await isListening(live.port)).toBe(true);
  expect(parent.list()).toHaveLength(2);

  await next.stop();
  live.child.kill('SIGTERM');
  await live.child.waitForExit(deadlineMs);
  expect(parent.list()).toEqual([]);
});
