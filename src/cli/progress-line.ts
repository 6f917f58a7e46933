// One line on stderr that says what goes on. A terminal sees it redrawn in place; anything else gets a line when the phase
// changes and at most one every five seconds in between.
import type { OutputStream } from './surroundings.js';

const lineEveryMs = 5_000;
const eraseLine = '\r\x1b[2K';

export interface ProgressLine {
  /** `phase`: what, when it changes, is worth a line of its own. */
  show(words: string, phase: string): void;
  /** Takes the line away, so that something else can be printed. */
  clear(): void;
}

export function createProgressLine(stream: OutputStream, nowMs: () => number = () => performance.now()): ProgressLine {
  let shown: string | undefined;
  let shownPhase: string | undefined;
  let shownAtMs = -Infinity;
  return {
    show(words, phase) {
      if (words === shown) return;
      if (stream.isTTY === true) {
        stream.write(`${eraseLine}${words.slice(0, widthOf(stream))}`);
      } else {
        if (phase === shownPhase && nowMs() - shownAtMs < lineEveryMs) return;
        stream.write(`${words}\n`);
      }
      shown = words;
      shownPhase = phase;
      shownAtMs = nowMs();
    },
    clear() {
      if (stream.isTTY === true && shown !== undefined) stream.write(eraseLine);
      shown = undefined;
    },
  };
}

/** One less than the terminal has, which may say 0 when it does not know. */
function widthOf(stream: OutputStream): number {
  return (stream.columns === undefined || stream.columns === 0 ? 80 : stream.columns) - 1;
}
