// Keys that no backup covers, in words: those of values by number, the audit key by what it is.
import { expect, test } from 'vitest';
import { keysWords } from '../../src/control/backup-policy.js';

const audit = 4_294_963_200;

test.each([
  { ids: [3], words: 'key 3 is in none' },
  { ids: [1, 3], words: 'keys 1 and 3 are in none' },
  { ids: [1, 2, 3], words: 'keys 1, 2 and 3 are in none' },
  { ids: [audit], words: 'the audit key is in none' },
  { ids: [1, audit], words: 'key 1 and the audit key are in none' },
  { ids: [1, 2, audit, audit + 1], words: 'keys 1, 2 and the audit key are in none' },
])('keys that no backup covers: $words', ({ ids, words }) => {
  expect(keysWords(ids)).toBe(words);
});
