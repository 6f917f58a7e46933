// Tells the story on stderr while it happens: numbered steps, notes, one line of progress. Times are measured here.
import { createProgressLine } from '../progress-line.js';

export interface Phase {
  readonly phase: string;
  readonly seconds: number;
}

export interface Narrator {
  readonly phases: readonly Phase[];
  /** Runs one step of the story under its heading and its clock. */
  step<T>(phase: string, heading: string, work: () => Promise<T>): Promise<T>;
  readonly note: (words: string) => void;
  /** A line that the next one replaces; `about` is what it tells of. */
  passing(words: string, about: string): void;
  readonly say: (text: string) => void;
}

export function createNarrator(out: NodeJS.WriteStream): Narrator {
  const phases: Phase[] = [];
  const progress = createProgressLine(out);

  function say(text: string): void {
    progress.clear();
    out.write(`${text}\n`);
  }

  return {
    phases,
    async step(phase, heading, work) {
      say(`\n${phases.length + 1}. ${heading}`);
      const fromMs = performance.now();
      const result = await work();
      phases.push({ phase, seconds: secondsSince(fromMs) });
      return result;
    },
    note: (words) => say(`   ✓ ${words}`),
    passing: (words, about) => progress.show(`   ${words}`, about),
    say,
  };
}

const barCells = 24;

export interface Progress {
  readonly state: string;
  readonly pass_rows: number;
  readonly rows_per_second: number | null;
  readonly held_back_by: string | null;
}

/** `rows`: the table's, which the demo knows exactly; rows that came up again do not overfill the bar. */
export function progressOf(run: Progress, rows: number): string {
  const filled = Math.floor(Math.min(1, run.pass_rows / rows) * barCells);
  const bar = `${'█'.repeat(filled)}${'░'.repeat(barCells - filled)}`;
  const rate = run.rows_per_second === null ? '' : `, ${withThousands(run.rows_per_second)} rows/s`;
  const held = run.held_back_by === null ? '' : ` (${run.held_back_by})`;
  return `${bar} ${run.state}: ${withThousands(run.pass_rows)} rows${rate}${held}`;
}

export function withThousands(count: number): string {
  return count.toLocaleString('en-US');
}

export function secondsSince(fromMs: number): number {
  return Math.round((performance.now() - fromMs) / 100) / 10;
}
