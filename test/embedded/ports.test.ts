// The race for a free port.

import { createServer, type Socket } from 'node:net';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { findServerAccount } from '../../src/embedded/account.js';
import { locateBinaries, prepareBinaries } from '../../src/embedded/binaries.js';
import { findFreePort } from '../../src/embedded/free-port.js';
import { createInstanceFolder } from '../../src/embedded/instance-folder.js';
import { EmbeddedServer } from '../../src/embedded/server.js';
import { type DataParent, makeDataParent } from './data-parent.js';

let parent: DataParent;
let server: EmbeddedServer;

beforeAll(async () => {
  parent = makeDataParent();
  const account = findServerAccount();
  const folder = createInstanceFolder(parent.path);
  const binaries = await prepareBinaries({ native: locateBinaries(), account, copyParent: folder.path });
  server = new EmbeddedServer({ binaries, account, folder, password: 'chosen', settings: {} });
  await server.initialise();
});

afterAll(async () => {
  await server?.stop();
  parent.remove();
});

test('a port that somebody else took is given up for another', async () => {
  const occupied = await findFreePort();
  // It accepts and never says a word, so only the end of our own server tells that the port is lost.
  const silent = new Set<Socket>();
  const other = createServer((socket) => silent.add(socket));
  await new Promise<void>((resolve) => other.listen(occupied, '127.0.0.1', resolve));
  const free = await findFreePort();
  const offered = [occupied, free];

  const running = await server.launch(async () => offered.shift() ?? free);
  expect(running.port).toBe(free);
  expect(offered).toEqual([]);
  for (const socket of silent) socket.destroy();
  await new Promise((resolve) => other.close(resolve));
});
