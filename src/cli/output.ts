// Where a command's words go: data on stdout, as text or as one JSON object; notes and progress on stderr.
import { styleText } from 'node:util';
import { toJson } from './json.js';
import { createProgressLine } from './progress-line.js';
import type { Surroundings } from './surroundings.js';

export type Tone = 'good' | 'bad' | 'watch' | 'strong' | 'quiet';

export interface Output {
  readonly isJson: boolean;
  /** The answer of the command. `lines` is called only when people read it. */
  report(value: object, lines: () => readonly string[]): void;
  /** Something said beside the answer. */
  note(words: string): void;
  progress(words: string, phase?: string): void;
  /** Colour where stdout is a terminal that wants it. */
  paint(tone: Tone, words: string): string;
  /** After it, nothing is printed any more. */
  close(): void;
}

const styles = { good: 'green', bad: 'red', watch: 'yellow', strong: 'bold', quiet: 'dim' } as const;

export function createOutput(
  surroundings: Surroundings,
  options: { readonly isJson: boolean; readonly onReport: () => void },
): Output {
  const { stdout, stderr } = surroundings;
  const line = createProgressLine(stderr);
  let isClosed = false;
  return {
    isJson: options.isJson,
    report(value, lines) {
      if (isClosed) return;
      line.clear();
      options.onReport();
      stdout.write(options.isJson ? `${toJson(value)}\n` : `${lines().join('\n')}\n`);
    },
    note(words) {
      if (isClosed) return;
      line.clear();
      stderr.write(`${words}\n`);
    },
    progress(words, phase = words) {
      if (!isClosed) line.show(words, phase);
    },
    // Decides by NO_COLOR, FORCE_COLOR and whether the stream is a terminal.
    paint: (tone, words) => styleText(styles[tone], words, { stream: stdout }),
    close() {
      line.clear();
      isClosed = true;
    },
  };
}
