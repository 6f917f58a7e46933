// Every statement of what follows a leaked root key fails once.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { failingCascade } from '../support/failing-cascade.js';
import { failStatements } from '../support/failing-verbs.js';
import { openShop, type Shop } from '../support/shop.js';

let folder: string;
let shop: Shop;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'keyturn-cascade-'));
});
afterAll(() => rmSync(folder, { recursive: true }));
beforeEach(async () => {
  shop = await openShop();
});
afterEach(() => shop.close());

// Each time leaves keys behind, so a database that has seen all of them would grow slow.
const step = 6;

test.each(Array.from({ length: step }, (_, at) => at + 1))(
  'I5 I10 statement %i of the cascade after a leaked root key fails, or every sixth after it: each step is whole or not there, and repeated it makes no key twice',
  async (from) => {
    expect(await failStatements(shop, failingCascade(folder), { from, step })).toBeGreaterThan(100);
  },
);
