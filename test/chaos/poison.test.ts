// The large form of what test/integration/quarantining.test.ts shows of a few batches.
import { expect, test } from 'vitest';
import { expectedOf, moveAroundPoison } from '../support/poison.js';

test('one damaged row in a hundred of 100,000 never pauses the run, and all the others are moved', async () => {
  expect(await moveAroundPoison(100_000)).toMatchObject(expectedOf(100_000));
});
