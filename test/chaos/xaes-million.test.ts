// The long run of the XAES specification. Takes tens of seconds and 320 MB, hence outside `npm test`.
import { expect, test } from 'vitest';
import { accumulatedXaesHash } from '../crypto/xaes-accumulated.js';
import { cryptoPaths } from '../support/crypto-paths.js';
import { readJsonVectors } from '../crypto/vector-files.js';

test.each(cryptoPaths)('1 000 000 accumulated XAES rounds give the hash [$path]', { timeout: 300_000 }, (path) => {
  const file = readJsonVectors<{ accumulated: { expected: Readonly<Record<string, string>> } }>(
    'xaes/xaes_256_gcm_vectors.json',
  );
  expect(accumulatedXaesHash(path, 1_000_000)).toBe(file.accumulated.expected['1000000']);
});
