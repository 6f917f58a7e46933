// No root key in a process that is ready to be debugged or dumped: by its options, and for real in child processes.
import { describe, expect, test } from 'vitest';
import { refuseDebugging, type DebuggedProcess } from '../../../src/keys/roots/debugging.js';
import { startChild } from '../../support/child.js';

const deadlineMs = 20_000;

function processWith(options: {
  execArgv?: readonly string[];
  env?: Record<string, string>;
}): DebuggedProcess & { listeners: number } {
  return {
    execArgv: options.execArgv ?? [],
    env: options.env ?? {},
    listeners: 0,
    listenerCount() {
      return this.listeners;
    },
    on() {
      this.listeners++;
    },
  };
}

describe('options of node', () => {
  test.each([
    '--inspect',
    '--inspect=0',
    '--inspect-brk=127.0.0.1:0',
    '--inspect_wait',
    '--inspect-port=0',
    '--debug-port=0',
    '--heapsnapshot-signal=SIGUSR2',
    '--heapsnapshot-near-heap-limit=2',
    '--heap-prof',
    '--report-on-signal',
    '--report-uncaught-exception',
    '--abort-on-uncaught-exception',
    '--abort_on_uncaught_exception',
  ])('%s is refused on the command line and in NODE_OPTIONS, unless it is allowed', (option) => {
    const places = [{ execArgv: ['--no-warnings', option] }, { env: { NODE_OPTIONS: `--no-warnings "${option}"` } }];
    for (const place of places) {
      expect(() => refuseDebugging(processWith(place))).toThrow(expect.objectContaining({ code: 'DEBUG_REFUSED' }));
      const allowed = { ...place, env: { ...place.env, KEYTURN_ALLOW_DEBUG: '1' } };
      expect(() => refuseDebugging(processWith(allowed))).not.toThrow();
    }
  });

  test('that show no memory are let through, and one listener is kept on SIGUSR1', () => {
    const current = processWith({
      execArgv: ['--max-old-space-size=200'],
      env: { NODE_OPTIONS: '--enable-source-maps' },
    });
    refuseDebugging(current);
    refuseDebugging(current);
    expect(current.listeners).toBe(1);
  });
});

describe('a process that opens a root key', () => {
  const env = { KEYTURN_ROOT_KEY: 'e2a1'.repeat(15) + '93b7', NODE_OPTIONS: '' };

  test('does not open it when it was started for debugging', async () => {
    for (const options of ['--inspect=127.0.0.1:0', '--report-on-signal', '--heapsnapshot-signal=SIGUSR2']) {
      const child = startChild('root-opener', { env: { ...env, NODE_OPTIONS: options } });
      expect(await child.waitForExit(deadlineMs)).toMatchObject({ code: 4 });
      expect(child.lines).toEqual(['DEBUG_REFUSED']);
    }
  });

  test('cannot be opened to a debugger from outside afterwards', async () => {
    const child = startChild('root-opener', { env });
    await child.waitForLine(/^opened$/, deadlineMs);
    child.kill('SIGUSR1');
    await child.waitForLine(/^signalled, inspector closed$/, deadlineMs);
    child.kill('SIGTERM');
    await child.waitForExit(deadlineMs);
    expect(child.stderr()).not.toContain('Debugger listening');
  });
});
