// A stored envelope on its way between TypeORM and the codec, in place of a property's value. It never shows the envelope
// and never passes for the plaintext (I8): whoever uses one that was not decrypted gets an error that says so.
import { inspect } from 'node:util';
import { KeyturnError } from '../errors.js';
import type { Stored } from '../formats/format.js';

export class Sealed {
  readonly #stored: Stored;
  readonly #title: string;

  constructor(stored: Stored, title: string) {
    this.#stored = stored;
    this.#title = title;
  }

  /** The envelope, for the codec and the database alone. */
  get stored(): Stored {
    return this.#stored;
  }

  toString(): string {
    throw this.#notDecrypted();
  }

  toJSON(): never {
    throw this.#notDecrypted();
  }

  [Symbol.toPrimitive](): never {
    throw this.#notDecrypted();
  }

  [inspect.custom](): string {
    return `[encrypted ${this.#title}]`;
  }

  #notDecrypted(): KeyturnError {
    return new KeyturnError(
      'VALUE_INVALID',
      `${this.#title} was loaded but not decrypted: listeners were off, its entity was mapped by a join without a relation, or Keyturn is not installed; pass the entity to open() of installKeyturn`,
      { property: this.#title },
    );
  }
}
