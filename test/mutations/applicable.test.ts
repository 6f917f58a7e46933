import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { mutations } from './mutations.js';

const checkout = join(import.meta.dirname, '..', '..');

// What `npm run test:mutations` would find only after minutes.
test.each(mutations)('the safeguard stands where it can be taken out: $removes', ({ file, text, test: noticing }) => {
  expect(readFileSync(join(checkout, file), 'utf8').split(text)).toHaveLength(2);
  expect(existsSync(join(checkout, noticing.file))).toBe(true);
});
