// Decrypts cells and compares them with what was written, counting every one. A cell that does not decrypt is a mismatch
// as well.
import { isKeyturnError } from '../../index.js';
import type { App } from './app-process.js';
import { findSequence, storedValueOf, tenantOf, valueOf, type ColumnName, type SelectedRow } from './customers.js';
import type { Mismatch, ReadCounts } from './messages.js';

const maxExamples = 5;

export class Comparison {
  readonly #app: App;
  #checked = 0;
  #mismatches = 0;
  readonly #examples: Mismatch[] = [];

  constructor(app: App) {
    this.#app = app;
  }

  /** True when the cell decrypts to exactly what write number `seq` put there. */
  async isAsWritten(row: SelectedRow, column: ColumnName, seq: number): Promise<boolean> {
    const expected = valueOf(row.id, column, seq);
    const seen = await this.#read(row, column);
    this.#checked++;
    if (seen.plaintext === expected) return true;
    this.#mismatches++;
    if (this.#examples.length < maxExamples) {
      this.#examples.push({
        id: row.id,
        column,
        expectedSeq: seq,
        seen: seen.failure ?? sequenceOrOther(seen.plaintext),
      });
    }
    return false;
  }

  async #read(row: SelectedRow, column: ColumnName): Promise<{ plaintext: string; failure?: string }> {
    try {
      const address = { pk: row.id, scope: tenantOf(row.id) };
      const { plaintext, stale } = await this.#app.column(column).decrypt(address, storedValueOf(row, column));
      // The gradual mode beside the bulk run: what is read moves, too.
      if (stale) this.#app.column(column).upgrade(address);
      return { plaintext: plaintext.toString() };
    } catch (error) {
      if (isKeyturnError(error)) return { plaintext: '', failure: error.code };
      throw error;
    }
  }

  counts(): ReadCounts {
    return { checked: this.#checked, mismatches: this.#mismatches, examples: this.#examples };
  }
}

function sequenceOrOther(plaintext: string): number | string {
  return findSequence(plaintext) ?? 'other text';
}
