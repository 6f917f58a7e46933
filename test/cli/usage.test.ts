import { expect, test } from 'vitest';
import { runCaptured } from './captured.js';

test.each([
  ['no command at all', [], /Usage: keyturn/],
  ['a group without a command', ['key'], /Usage: keyturn key/],
  ['a mistyped command, with the nearest one', ['statsu'], /unknown command 'statsu'\n\(Did you mean status\?\)/],
  ['a mistyped command of a group', ['key', 'rotat'], /Did you mean rotate\?/],
  ['a mistyped option, with the nearest one', ['status', '--jsn'], /Did you mean --json\?/],
  ['a root change that does not say to what', ['root', 'rotate'], /required option '--to <uri>'/],
  ['a member left behind for no reason', ['root', 'finalize', '--without', 'billing'], /it needs --reason/],
  ['a missing argument', ['run', 'show'], /missing required argument 'id'/],
  ['an argument too many', ['status', 'now'], /too many arguments/],
  ['a run that is no number', ['run', 'show', 'last'], /Expected the number of a run/],
  ['a duration without a unit', ['key', 'rotate', '--if-older-than', '80'], /such as 80d, 12h, 30m or 45s/],
  ['no worker at all', ['reencrypt', '--local', '0'], /from 1 to 64/],
  ['a calendar without an end', ['schedule', 'list', '--calendar', '1000'], /from 1 to 50/],
  ['gradual days without a unit', ['schedule', 'set', '--gradual', '30'], /such as 80d, 12h, 30m or 45s/],
  ['waiting for a run that was not asked for', ['key', 'rotate', '--wait'], /--reencrypt/],
  [
    'an approval and a cancellation at once',
    ['key', 'destroy', 'v1', '--approve', '1', '--cancel'],
    /cannot be used with/,
  ],
  ['a waiting time that is no number', ['key', 'destroy', 'v1', '--wait-days', 'soon'], /whole number of days/],
  [
    'statements and a deep verification at once',
    ['verify', '--sql', '--deep'],
    /cannot be used with option '--sql'|cannot be used with option '--deep'/,
  ],
] as const)('usage: %s exits 2 and says so on stderr', async (_, args, said) => {
  const { code, stdout, stderr } = await runCaptured(...args);
  expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
  expect(stderr).toMatch(said);
});

test('a usage error with --json is one JSON object on stdout as well', async () => {
  const { code, stdout } = await runCaptured('run', 'show', 'last', '--json');
  expect(code).toBe(2);
  expect(JSON.parse(stdout)).toMatchObject({ error: { code: 'USAGE', kind: 'invalid' } });
});

test('the version is on stdout', async () => {
  expect(await runCaptured('--version')).toEqual({ code: 0, stdout: '1.2.3\n', stderr: '' });
});

test('I7 a bug is reported by its class alone, with exit code 1, and how to see where it happened', async () => {
  const { code, stderr } = await runCaptured('status');
  expect(code).toBe(1);
  expect(stderr).toBe(
    'keyturn: an unexpected Error ended this command, which is a bug in keyturn; LOG_LEVEL=debug shows where\n',
  );
});
