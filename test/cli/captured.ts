// The command line inside the test process, for what does not need a process of its own: help, usage, and what is printed.
import { PassThrough } from 'node:stream';
import { createCli } from '../../src/cli/cli.js';
import { createProgram } from '../../src/cli/program.js';
import { runCli } from '../../src/cli/run-cli.js';
import type { Surroundings } from '../../src/cli/surroundings.js';

const notHere = (): never => {
  throw new Error('nothing is opened here');
};

function surroundings(
  stdout: PassThrough,
  stderr: PassThrough,
  given: Partial<Pick<Surroundings, 'environment' | 'openControl'>> = {},
): Surroundings {
  return {
    version: '1.2.3',
    environment: {},
    stdout,
    stderr,
    openControl: notHere,
    runWorker: notHere,
    runSupervisor: notHere,
    runDemo: notHere,
    entries: { worker: '', supervisor: '' },
    ...given,
  };
}

export interface Captured {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Without a database. */
export function runCaptured(...args: string[]): Promise<Captured> {
  return runCapturedWith({}, ...args);
}

export async function runCapturedWith(
  given: Partial<Pick<Surroundings, 'environment' | 'openControl'>>,
  ...args: string[]
): Promise<Captured> {
  const stdout = new PassThrough();
  const stderr = new PassThrough();
  const code = await runCli(args, surroundings(stdout, stderr, given));
  return { code, stdout: textOf(stdout), stderr: textOf(stderr) };
}

function textOf(stream: PassThrough): string {
  const content: unknown = stream.read();
  return Buffer.isBuffer(content) ? content.toString('utf8') : '';
}

export interface KnownCommand {
  /** `key rotate` */
  readonly path: string;
  readonly options: readonly string[];
  readonly isGroup: boolean;
}

/** Every command and group of commands, as commander knows them. */
export function knownCommands(): readonly KnownCommand[] {
  const nowhere = new PassThrough();
  const opened = surroundings(nowhere, nowhere);
  const { program } = createProgram(opened, (configFile) => createCli(opened, configFile));
  type Command = typeof program;
  const walk = (command: Command, path: string): KnownCommand[] => [
    {
      path,
      options: command.options.flatMap((option) => option.long ?? []),
      isGroup: command.commands.length > 0,
    },
    ...command.commands.flatMap((child) => walk(child, `${path} ${child.name()}`.trim())),
  ];
  return program.commands.flatMap((command) => walk(command, command.name()));
}

/** The command that a command line names, once commander has accepted its arguments and options; throws what is wrong. */
export function parseCommandLine(args: readonly string[]): string {
  const nowhere = new PassThrough();
  const opened = surroundings(nowhere, nowhere);
  const { program } = createProgram(opened, (configFile) => createCli(opened, configFile));
  let named = '';
  type Command = typeof program;
  const instead = (command: Command, path: string): void => {
    for (const child of command.commands) instead(child, `${path} ${child.name()}`.trim());
    if (command.commands.length === 0)
      command.action(() => {
        named = path;
      });
  };
  instead(program, '');
  program.parse(args, { from: 'user' });
  return named;
}
