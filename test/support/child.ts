// Real child processes for tests that crash them: started from compiled scripts, listened to line by line, killed by
// pid. A child that outlives its test file is killed, and fails the file.

import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { afterAll } from 'vitest';
import { until } from './until.js';

export interface ChildOptions {
  /** Beside this process's own environment; with `onlyEnv` instead of it, for a queue address must not slip through. */
  readonly env?: Readonly<Record<string, string>>;
  readonly onlyEnv?: boolean;
  readonly args?: readonly string[];
  readonly cwd?: string;
  /** What it reads from its stdin, which ends then. */
  readonly input?: string;
}

export interface ChildExit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export interface Child {
  readonly pid: number;
  /** The lines printed so far. */
  readonly lines: readonly string[];
  stderr(): string;
  /** The first line that matches, printed already or still to come. Fails at once when the child ends without it. */
  waitForLine(pattern: RegExp, deadlineMs: number): Promise<RegExpExecArray>;
  waitForExit(deadlineMs: number): Promise<ChildExit>;
  /** False when the process had ended before. */
  kill(signal: NodeJS.Signals): boolean;
}

const checkout = join(import.meta.dirname, '..', '..');
const running = new Set<Child>();

afterAll(async () => {
  const leaked = [...running];
  for (const child of leaked) child.kill('SIGKILL');
  for (const child of leaked) await child.waitForExit(5_000);
  if (leaked.length > 0) throw new Error(`left running: pid ${leaked.map((child) => child.pid).join(', ')}`);
});

/** Starts test/children/<script>.ts, as compiled into dist. */
export function startChild(script: string, options: ChildOptions = {}): Child {
  return startNode(join(checkout, 'dist', 'test', 'children', `${script}.js`), options);
}

export function startNode(file: string, options: ChildOptions = {}): Child {
  if (!existsSync(file)) throw new Error(`${file} does not exist: compile the test children first`);
  const child = spawn(process.execPath, [file, ...(options.args ?? [])], {
    cwd: options.cwd ?? checkout,
    env: { ...(options.onlyEnv === true ? {} : process.env), ...options.env },
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  // A child that never reads it, or is killed before, breaks the pipe.
  child.stdin.on('error', () => undefined).end(options.input ?? '');
  const { pid } = child;
  if (pid === undefined) throw new Error(`${file} could not be started`);

  const lines: string[] = [];
  let stderr = '';
  let exit: ChildExit | undefined;
  let outputEnded = false;
  createInterface({ input: child.stdout }).on('line', (line) => lines.push(line));
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  child.once('exit', (code, signal) => {
    exit = { code, signal };
    running.delete(started);
  });
  child.once('close', () => {
    outputEnded = true;
  });

  const started: Child = {
    pid,
    lines,
    stderr: () => stderr,
    waitForLine: (pattern, deadlineMs) => {
      if (pattern.global || pattern.sticky) throw new Error('a pattern with memory skips matches: leave out its flag');
      return until(
        async () => {
          const ended = outputEnded;
          for (const line of lines) {
            const match = pattern.exec(line);
            if (match !== null) return match;
          }
          if (ended) throw new Error(`pid ${pid} ended before printing ${pattern}; its stderr:\n${stderr}`);
          return undefined;
        },
        { what: `pid ${pid} to print ${pattern}`, deadlineMs },
      );
    },
    waitForExit: async (deadlineMs) => {
      const seen = await until(async () => exit, { what: `pid ${pid} to end`, deadlineMs });
      // Its last lines may still be in the pipe, and a process of its own may hold the pipe open for good.
      const patience = performance.now() + 1_000;
      while (!outputEnded && performance.now() < patience) await delay(5);
      return seen;
    },
    kill: (signal) => {
      process.stdout.write(`pid ${pid} signal ${signal}\n`);
      return child.kill(signal);
    },
  };
  running.add(started);
  return started;
}
