// A new root key that is given as bytes: it is in its file whole or not at all, and the repeated command puts it there.
import { randomBytes } from 'node:crypto';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { ControlContext } from '../../src/control/context.js';
import { placeNewRootKey } from '../../src/control/new-root-key.js';
import { Secret } from '../../src/crypto/secret.js';
import { failAt } from '../support/failing-database.js';
import { failFileAt } from '../support/failing-files.js';
import { outcomeOf } from '../support/outcome-of.js';
import { openShop, type Shop } from '../support/shop.js';

let shop: Shop;
let folder: string;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'keyturn-placing-'));
  shop = await openShop();
});
afterAll(async () => {
  await shop.close();
  rmSync(folder, { recursive: true });
});

interface Failing {
  readonly what: string;
  readonly code: string;
  fail(context: ControlContext, nth: number): { readonly context: ControlContext; readonly asked: () => number };
}

const failing: readonly Failing[] = [
  {
    what: 'file operation',
    code: 'FILE_UNAVAILABLE',
    fail(context, nth) {
      const { files, asked } = failFileAt(nth, 'ENOSPC');
      return { context: { ...context, files }, asked };
    },
  },
  {
    what: 'statement',
    code: 'DATABASE_UNAVAILABLE',
    fail(context, nth) {
      const { database, asked } = failAt(context.database, nth);
      return { context: { ...context, database }, asked };
    },
  },
];

test.each(failing)(
  'a new root key is whole in its file or not there when the n-th $what fails, for every n, and repeated it is there',
  async ({ what, code, fail }) => {
    const { context } = shop.control;
    let nth = 1;
    for (; ; nth++) {
      const path = join(folder, `${what.replace(' ', '-')}-${nth}.key`);
      const digits = randomBytes(32).toString('hex');
      const place = (with_: ControlContext): Promise<void> =>
        placeNewRootKey(with_, `file:${path}`, new Secret(digits));
      const { context: troubled, asked } = fail(context, nth);
      const end = await outcomeOf(() => place(troubled));
      const isOver = asked() < nth;
      expect({ nth, end }).toEqual({ nth, end: isOver ? 'done' : code });
      const left = existsSync(path) ? readFileSync(path, 'utf8') : 'none';
      expect(['none', `${digits}\n`]).toContain(left);
      await place(context);
      expect(readFileSync(path, 'utf8')).toBe(`${digits}\n`);
      expect(statSync(path).mode & 0o777).toBe(0o600);
      if (isOver) break;
    }
    expect(nth).toBeGreaterThan(2);
    expect(readdirSync(folder).filter((name) => name.endsWith('.tmp'))).toEqual([]);
  },
);
