// A secret string prints as [redacted] on every way out (I7).
import { format, inspect } from 'node:util';
import { expect, test } from 'vitest';
import { Secret } from '../../src/crypto/secret.js';

test('a secret prints as redacted on every way out (I7)', () => {
  const secret = new Secret('postgres://app:hunter2@db/shop');
  expect(String(secret)).toBe('[redacted]');
  expect(JSON.stringify({ url: secret })).toBe('{"url":"[redacted]"}');
  expect(inspect(secret)).toBe('[redacted]');
  const printed = [
    inspect({ deep: { secret } }, { depth: 9, showHidden: true }),
    format('%s %o %O %j %d', secret, secret, secret, secret, secret),
    new Error(`cannot connect to ${String(secret)}`).message,
    Object.entries(secret).join(),
    JSON.stringify(Object.assign({}, secret)),
  ].join();
  expect(printed).not.toContain('hunter2');
});

test('a secret exposes its value on request', () => {
  expect(new Secret('postgres://app:hunter2@db/shop').expose()).toBe('postgres://app:hunter2@db/shop');
});
