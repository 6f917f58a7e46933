// A running embedded server: whom it answers, where it listens, what it leaves on disk, how it stops.

import { readdirSync, statSync } from 'node:fs';
import { networkInterfaces } from 'node:os';
import { dirname } from 'node:path';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type EmbeddedPostgres, startEmbeddedPostgres } from '../../src/embedded/postgres.js';
import { type DataParent, makeDataParent } from './data-parent.js';
import { isListening } from './listening.js';

let parent: DataParent;
let server: EmbeddedPostgres;
let other: EmbeddedPostgres;

beforeAll(async () => {
  // What steers a client must not steer the server.
  process.env.PGDATA = '/nowhere';
  process.env.PGPORT = '1';
  parent = makeDataParent();
  [server, other] = await Promise.all([
    startEmbeddedPostgres({
      dataParent: parent.path,
      settings: { work_mem: '7MB', listen_addresses: '*', fsync: 'on' },
    }),
    startEmbeddedPostgres({ dataParent: parent.path }),
  ]);
});

afterAll(async () => {
  delete process.env.PGDATA;
  delete process.env.PGPORT;
  await Promise.all([server?.stop(), other?.stop()]);
  parent.remove();
});

async function show(url: string, setting: string): Promise<unknown> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    const { rows } = await client.query('SELECT current_setting($1) AS value', [setting]);
    return rows[0].value;
  } finally {
    await client.end();
  }
}

test('two servers started at once both answer, each on its own port and data', async () => {
  expect(server.port).not.toBe(other.port);
  expect(server.pid).not.toBe(other.pid);
  expect(await show(server.url, 'data_directory')).not.toBe(await show(other.url, 'data_directory'));
  expect(await show(other.url, 'server_encoding')).toBe('UTF8');
});

test("the caller's settings count, save for where the server listens", async () => {
  expect(await show(server.url, 'work_mem')).toBe('7MB');
  expect(await show(server.url, 'fsync')).toBe('on');
  expect(await show(other.url, 'fsync')).toBe('off');
  expect(await show(server.url, 'listen_addresses')).toBe('127.0.0.1');
});

test('the server listens on the loopback address only, and on no Unix socket', async () => {
  expect(await show(other.url, 'unix_socket_directories')).toBe('');
  const outward = Object.values(networkInterfaces())
    .flatMap((addresses) => addresses ?? [])
    .filter((address) => address.family === 'IPv4' && !address.internal);
  for (const { address } of outward)
    expect([address, await isListening(server.port, address)]).toEqual([address, false]);
  expect(await isListening(server.port)).toBe(true);
});

test('a wrong password is refused', async () => {
  const url = new URL(server.url);
  url.password = 'wrong';
  await expect(show(url.href, 'port')).rejects.toMatchObject({ code: '28P01' });
  expect(await show(server.url, 'password_encryption')).toBe('scram-sha-256');
});

test('the password is in no file beside the data, and the data are closed to others', () => {
  const folder = dirname(server.logFile);
  expect(readdirSync(folder)).toContain('data');
  expect(readdirSync(folder)).not.toContain('password');
  expect(statSync(`${folder}/data`).mode & 0o077).toBe(0);
  expect(statSync(server.logFile).mode & 0o077).toBe(0);
});

test('stopping ends the server and removes its folder, and stopping twice is fine', async () => {
  const stopped = await startEmbeddedPostgres({ dataParent: parent.path });
  const handlers = process.listenerCount('SIGTERM');
  await Promise.all([stopped.stop(), stopped.stop()]);
  await stopped.stop();
  expect(await isListening(stopped.port)).toBe(false);
  expect(parent.list()).toHaveLength(2);
  expect(process.listenerCount('SIGTERM')).toBe(handlers);
});
