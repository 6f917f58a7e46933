// Help that teaches: after the options of every command, what it changes and what not, examples to copy, and its exit
// codes. The table of all exit codes is the help of `keyturn` itself.
import type { Command } from 'commander';

export interface Lesson {
  /** What the command changes, and what it leaves alone. */
  readonly changes: string;
  readonly examples: readonly (readonly [command: string, what: string])[];
  /** Codes besides 0 and the ones every command has, with what they mean here. */
  readonly exits?: Readonly<Record<number, string>>;
}

const width = 98;
const everyExit: Readonly<Record<number, string>> = {
  0: 'done',
  2: 'wrong usage or configuration',
  7: 'the database cannot be reached',
};

export function teach(command: Command, lesson: Lesson): Command {
  return command.addHelpText('after', () => `\n${lessonLines(lesson).join('\n')}`);
}

function lessonLines(lesson: Lesson): readonly string[] {
  const longest = Math.max(...lesson.examples.map(([example]) => example.length));
  const exits = Object.entries({ ...everyExit, ...lesson.exits }).toSorted(([a], [b]) => Number(a) - Number(b));
  return [
    'Changes:',
    ...wrap(lesson.changes),
    '',
    'Examples:',
    ...lesson.examples.map(([example, what]) => `  ${example.padEnd(longest)}   ${what}`.trimEnd()),
    '',
    'Exit codes (all of them: keyturn --help):',
    ...exits.map(([code, meaning]) => `  ${code.padStart(3)}  ${meaning}`),
  ];
}

function wrap(text: string): readonly string[] {
  const lines: string[] = [];
  let line = ' ';
  for (const word of text.split(' ')) {
    if (line.length + 1 + word.length > width) {
      lines.push(line);
      line = ' ';
    }
    line = `${line} ${word}`;
  }
  return [...lines, line];
}

export const generalHelp = `
A first rotation:
  $ keyturn init                                  schema, first data key, tables of keyturn.yaml
  $ keyturn doctor                                what stands in the way, and how to mend it
  $ keyturn key rotate --reencrypt --local 2      a new key, and every row moved to it
  $ keyturn verify --deep --local 2               every value decrypted once, nothing changed
  $ keyturn status                                where everything stands, and the next safe command

Environment: DATABASE_URL (DATABASE_DIRECT_URL behind a pooler), REDIS_URL (without it the queue is in
  PostgreSQL), KEYTURN_CONFIG, the variables that keyturn.yaml names for root keys, LOG_LEVEL, HOST and
  PORT of long-running commands. Each of the URLs may be given as NAME_FILE, a file that holds it.

Exit codes: 0 done; 1 a bug in keyturn; 2 wrong usage or configuration; 3 no such run, key or table;
  4 refused in this state; 5 not permitted; 6 values failed or are stale; 7 database, queue, root key or
  workers are away; 8 the wrong root key (MasterKeyMismatch); 130 and 143 ended by SIGINT and SIGTERM.`;
