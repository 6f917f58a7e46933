import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { knownCommands, runCaptured } from './captured.js';

const commands = knownCommands();
const leaves = commands.filter((command) => !command.isGroup);

test('the commands of this release are these and no others', () => {
  expect(leaves.map((command) => command.path).toSorted()).toEqual(
    [
      'adopt',
      'audit list',
      'audit verify',
      'backup create',
      'backup inspect',
      'backup restore',
      'backup verify',
      'demo',
      'doctor',
      'init',
      'key activate',
      'key compromise',
      'key destroy',
      'key lazy',
      'key list',
      'key restore',
      'key retire',
      'key rotate',
      'key stage',
      'member forget',
      'member list',
      'quarantine list',
      'quarantine resolve',
      'quarantine retry',
      'rebind',
      'reencrypt',
      'root finalize',
      'root prepare',
      'root rollback',
      'root rotate',
      'root status',
      'run cancel',
      'run limit',
      'run list',
      'run pause',
      'run resume',
      'run retry',
      'run show',
      'run watch',
      'schedule list',
      'schedule remove',
      'schedule set',
      'status',
      'supervisor',
      'target census',
      'target discover',
      'target list',
      'target rename',
      'verify',
      'worker',
    ].toSorted(),
  );
});

describe.each(leaves)('help of $path', ({ path, options }) => {
  test(`keyturn ${path} --help says what it changes, shows examples and exit codes, and names every option`, async () => {
    const { code, stdout, stderr } = await runCaptured(...path.split(' '), '--help');
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    for (const part of ['Changes:', 'Examples:', `keyturn ${path}`, 'Exit codes', '--config', ...options]) {
      expect(stdout).toContain(part);
    }
  });
});

test('every verb that changes something takes a reason', () => {
  const changing = [
    'adopt',
    'backup create',
    'backup restore',
    'init',
    'key activate',
    'key compromise',
    'key destroy',
    'key lazy',
    'key restore',
    'key retire',
    'key rotate',
    'key stage',
    'member forget',
    'quarantine resolve',
    'quarantine retry',
    'rebind',
    'reencrypt',
    'root finalize',
    'root prepare',
    'root rollback',
    'root rotate',
    'run cancel',
    'run limit',
    'run pause',
    'run resume',
    'run retry',
    'schedule remove',
    'schedule set',
    'target rename',
  ];
  expect(
    leaves
      .filter((command) => command.options.includes('--reason') && command.path !== 'verify')
      .map((command) => command.path)
      .toSorted(),
  ).toEqual(changing);
});

test('keyturn --help lists every command, the environment and all exit codes', async () => {
  const { code, stdout } = await runCaptured('--help');
  expect(code).toBe(0);
  for (const command of commands.filter(({ path }) => !path.includes(' ')))
    expect(stdout).toContain(`  ${command.path}`);
  for (const part of ['DATABASE_URL', 'REDIS_URL', 'KEYTURN_CONFIG', 'MasterKeyMismatch', '130 and 143'])
    expect(stdout).toContain(part);
});

test('the page about the command line names every command and every option', () => {
  const page = readFileSync(join(import.meta.dirname, '..', '..', 'docs', 'cli.md'), 'utf8');
  const missing = leaves.flatMap(({ path, options }) => {
    const section = page.split('\n### ').find((candidate) => candidate.startsWith(`${path}\n`)) ?? '';
    return [`keyturn ${path}`, ...options].filter((name) => !section.includes(name)).map((name) => `${path}: ${name}`);
  });
  expect(missing).toEqual([]);
});
