// An application in this process that overwrites one cell after the other through the library, for as long as it is let,
// and remembers what was acknowledged.
import { setTimeout as delay } from 'node:timers/promises';
import type { Keyturn } from '../../src/app.js';
import { customer, type Customer, type Shop } from './shop.js';

export interface SteadyWriter {
  /** Writes acknowledged so far. */
  count(): number;
  /** Resolves when the write in hand is acknowledged; nothing is written until `goOn`. */
  rest(): Promise<void>;
  goOn(): void;
  /** What the cells of a customer must decrypt to by now. */
  expected(id: number): Customer;
}

const pauseMs = 4;

/** Begins at once, at e-mail addresses of those of the customers that have one. */
export function startSteadyWriter(shop: Shop, keyturn: Keyturn, ids: readonly number[]): SteadyWriter {
  const email = keyturn.column('public.customer', 'email');
  const written = ids.filter((id) => customer(id).email !== null);
  const acknowledged = new Map<number, string>();
  let count = 0;
  let isResting = false;
  let writing: Promise<void>;

  async function writeOn(): Promise<void> {
    while (!isResting) {
      const id = written[Math.floor(Math.random() * written.length)] ?? 1;
      const value = `write ${count + 1}`;
      await shop.query('UPDATE customer SET email = $2 WHERE id = $1', [
        id,
        await email.encrypt({ pk: id, scope: customer(id).tenant }, value),
      ]);
      acknowledged.set(id, value);
      count++;
      await delay(pauseMs);
    }
  }

  function goOn(): void {
    isResting = false;
    writing = writeOn();
    // It is waited for at the next rest.
    writing.catch(() => undefined);
  }

  goOn();
  return {
    count: () => count,
    async rest() {
      isResting = true;
      await writing;
    },
    goOn,
    expected: (id) => ({ ...customer(id), ...(acknowledged.has(id) ? { email: acknowledged.get(id) ?? '' } : {}) }),
  };
}
