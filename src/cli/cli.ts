// What every command does around its verb: opens control, checks the schema, listens for signals, prints, cleans up.
import { existsSync } from 'node:fs';
import { noConfigFile, type ControlContext } from '../control/context.js';
import { requireInitialized } from '../control/readiness.js';
import { listenForInterruption } from './interruption.js';
import { createOutput, type Output } from './output.js';
import type { Surroundings } from './surroundings.js';

export interface Verb {
  readonly isJson: boolean | undefined;
  /**
   * keyturn.yaml: `read` where the command needs what only the file says, `if there` where it can do without, `none` for
   * steering and status, which need the database alone.
   */
  readonly file: 'read' | 'if there' | 'none';
  /** For commands that work on a database without, or with an older, schema. */
  readonly anySchema?: boolean;
}

export interface Running {
  readonly context: ControlContext;
  readonly output: Output;
  /** Runs at the end of the command, however it ends; the last added runs first. */
  atEnd(cleanUp: () => Promise<void>): void;
  /** What to say of unfinished work when a signal ends the command. */
  hintIfInterrupted(words: string): void;
}

export interface Cli {
  readonly surroundings: Surroundings;
  /** The value of --config. */
  configFile(): string | undefined;
  /** `work` answers an exit code other than 0 where it has one. */
  run(verb: Verb, work: (running: Running) => Promise<number | void>): Promise<void>;
  /** For commands that need no database. */
  runAlone(verb: Pick<Verb, 'isJson'>, work: (output: Output) => Promise<void>): Promise<void>;
  /** For commands that open nothing. */
  endWith(exitCode: number): void;
  readonly exitCode: number;
  /** Whether the answer is on stdout by now. */
  readonly hasReported: boolean;
}

/** `configFile`: the value of --config, asked for when a command runs. */
export function createCli(surroundings: Surroundings, configFile: () => string | undefined): Cli {
  let exitCode = 0;
  let hasReported = false;
  const outputFor = ({ isJson }: Pick<Verb, 'isJson'>): Output =>
    createOutput(surroundings, { isJson: isJson === true, onReport: () => (hasReported = true) });
  return {
    surroundings,
    configFile,
    get exitCode() {
      return exitCode;
    },
    get hasReported() {
      return hasReported;
    },
    endWith(code) {
      exitCode = code;
    },
    async runAlone(verb, work) {
      await work(outputFor(verb));
    },
    async run(verb, work) {
      const output = outputFor(verb);
      const cleanUps: (() => Promise<void>)[] = [];
      let hint: string | undefined;
      const opened = surroundings.openControl({
        environment: surroundings.environment,
        file: fileFor(verb, configFile(), surroundings.environment),
        onProgress: (words) => output.progress(words),
      });
      const interruption = listenForInterruption(() => hint);
      const running: Running = {
        context: opened.context,
        output,
        atEnd: (cleanUp) => cleanUps.unshift(cleanUp),
        hintIfInterrupted(words) {
          hint = words;
        },
      };
      const worked = (async () => {
        if (verb.anySchema !== true) await requireInitialized(opened.context);
        return work(running);
      })();
      let isInterrupted = false;
      interruption.happened.catch(() => {
        isInterrupted = true;
        if (cleanUps.length > 0) output.note('ending what this command started; a second signal does not wait');
        output.close();
      });
      try {
        exitCode = (await Promise.race([worked, interruption.happened])) ?? 0;
      } finally {
        for (const cleanUp of cleanUps) await cleanUp();
        output.close();
        interruption.stop();
        // An interrupted verb may be in the middle of a statement; the process ends and the database rolls it back.
        if (!isInterrupted) await opened.close();
      }
    },
  };
}

function fileFor(verb: Verb, configFile: string | undefined, environment: NodeJS.ProcessEnv): string | undefined {
  if (verb.file === 'none') return noConfigFile;
  const isNamed = configFile !== undefined || environment['KEYTURN_CONFIG'] !== undefined;
  return verb.file === 'if there' && !isNamed && !existsSync('keyturn.yaml') ? noConfigFile : configFile;
}
