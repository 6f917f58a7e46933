// A server that cannot start.

import { afterEach, beforeEach, expect, test } from 'vitest';
import { startEmbeddedPostgres } from '../../src/embedded/postgres.js';
import { type DataParent, makeDataParent } from './data-parent.js';

let parent: DataParent;

beforeEach(() => {
  parent = makeDataParent();
});

afterEach(() => {
  parent.remove();
});

test("a server that exits at once fails the start with its log's last lines, and leaves nothing", async () => {
  await expect(
    startEmbeddedPostgres({ dataParent: parent.path, settings: { no_such_setting: 'on' } }),
  ).rejects.toMatchObject({
    code: 'DATABASE_UNAVAILABLE',
    message: expect.stringMatching(/exited with code 1[\s\S]*unrecognized configuration parameter "no_such_setting"/),
  });
  expect(parent.list()).toEqual([]);
});
