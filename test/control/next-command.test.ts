// What `status` ends with, for every situation an operator may find.
import { expect, test } from 'vitest';
import { nextCommand, type Standing } from '../../src/control/next-command.js';

const quiet: Standing = {
  keyring: 'customers',
  isRotationBegun: false,
  hasStandby: true,
  oldestDecryptOnly: undefined,
  targets: 1,
  unfinished: undefined,
  lastRun: undefined,
  isStaleSince: false,
  quarantined: 0,
  runners: { hasSupervisor: true, workers: 2 },
};
const alone = { hasSupervisor: false, workers: 0 };
const rotated: Standing = { ...quiet, oldestDecryptOnly: '1' };
const succeeded: Standing = { ...rotated, lastRun: { id: 7, state: 'succeeded' } };
const withFailures: Standing = { ...rotated, lastRun: { id: 7, state: 'completed_with_failures' } };
const running: Standing = { ...rotated, lastRun: { id: 7, state: 'running' }, unfinished: { id: 7, state: 'running' } };

test.each<[string, Standing, string]>([
  ['one key and a standby', quiet, 'nothing to do'],
  ['no standby', { ...quiet, hasStandby: false }, 'keyturn key stage --keyring customers'],
  ['no standby and work to do', { ...running, hasStandby: false }, 'keyturn run watch 7'],
  [
    'a rotation cut short before the activation',
    { ...running, isRotationBegun: true },
    'keyturn key activate --keyring customers',
  ],
  ['a new key and no run toward it', rotated, 'keyturn reencrypt --keyring customers --wait'],
  ['no members to move the rows', { ...rotated, runners: alone }, 'keyturn reencrypt --keyring customers --local 2'],
  ['no target', { ...rotated, targets: 0 }, 'nothing to do'],
  ['an unfinished run', running, 'keyturn run watch 7'],
  [
    'an unfinished run and no members',
    { ...running, runners: alone },
    'start keyturn supervisor and keyturn worker, then keyturn run watch 7',
  ],
  [
    'an unfinished run and no worker',
    { ...running, runners: { hasSupervisor: true, workers: 0 } },
    'start keyturn worker, then keyturn run watch 7',
  ],
  [
    'a paused run',
    { ...running, unfinished: { id: 7, state: 'paused' }, runners: alone },
    'keyturn run show 7, then keyturn run resume 7',
  ],
  [
    'a run that failed',
    { ...rotated, lastRun: { id: 7, state: 'failed' } },
    'keyturn reencrypt --keyring customers --wait',
  ],
  [
    'a cancelled run, and cells in quarantine',
    { ...rotated, lastRun: { id: 7, state: 'cancelled' }, quarantined: 2 },
    'keyturn reencrypt --keyring customers --wait',
  ],
  [
    'cells in quarantine',
    { ...withFailures, quarantined: 2 },
    'keyturn quarantine list, mend what failed, then keyturn quarantine retry --wait',
  ],
  [
    'cells in quarantine and no members',
    { ...withFailures, quarantined: 2, runners: alone },
    'keyturn quarantine list, mend what failed, then keyturn quarantine retry --local 2',
  ],
  ['cells that were mended since the run', withFailures, 'keyturn reencrypt --keyring customers --wait'],
  [
    'stale rows that a scan found',
    { ...succeeded, isStaleSince: true },
    'keyturn reencrypt --keyring customers --wait',
  ],
  ['a key that may retire', succeeded, 'keyturn key retire 1 --keyring customers'],
])('the next command for %s', (_, standing, next) => {
  expect(nextCommand(standing)).toBe(next);
});
