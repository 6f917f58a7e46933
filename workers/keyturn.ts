#!/usr/bin/env node
// Entry point of the command line: hands src/cli, which must not know the wiring, what only the wiring can open.
import { fileURLToPath } from 'node:url';
import { openControl, version } from '../src/app.js';
import { runCli } from '../src/cli/run-cli.js';

const interruptedExitCode = 128;
const entries = { worker: entry('./reencrypt.js'), supervisor: entry('./supervisor.js') };

// A reader that has seen enough (`keyturn run list | head -1`) is no error.
process.stdout.on('error', () => process.exit(0));

process.exitCode = await runCli(process.argv.slice(2), {
  version,
  environment: process.env,
  stdin: process.stdin,
  stdout: process.stdout,
  stderr: process.stderr,
  openControl,
  runWorker: async (listen) => (await import('./run-worker.js')).runWorker({ listen }),
  runSupervisor: async (listen) => {
    const [{ startSupervisorProcess }, { runUntilSignal }] = await runners();
    await runUntilSignal((options) => startSupervisorProcess({ ...options, listen }));
  },
  runDemo: async (options) =>
    (await import('../src/cli/demo/run-demo.js')).runDemo({
      ...options,
      openControl,
      removeQueue: async (environment) => (await runners())[0].removeQueueInRedis(environment),
      entry: entries,
    }),
  entries,
});
// An interrupted command leaves connections in the middle of a statement behind.
if (process.exitCode > interruptedExitCode) process.exit();

/** Loaded for long-running commands alone: the others need no queue. */
function runners() {
  return Promise.all([import('../src/app-runners.js'), import('./run-until-signal.js')]);
}

function entry(name: string): string {
  return fileURLToPath(new URL(name, import.meta.url));
}
