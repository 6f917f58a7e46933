// The transformer of an encrypted column. It sees neither row nor tenant, so it does not encrypt: out of the database comes a
// Sealed, into it goes what a Sealed holds. A plaintext that TypeORM compares (has a property changed?) becomes a keyed
// digest behind a NUL: equal for equal values, telling nothing, and refused by PostgreSQL should it ever get there.
import { createHmac, randomBytes } from 'node:crypto';
import type { ValueTransformer } from 'typeorm';
import type { Stored } from '../formats/format.js';
import { Sealed } from './sealed.js';
import { encodeValue, type ValueType } from './value-type.js';

const markerStart = '\u0000keyturn ';
/** Of this process alone: digests mean nothing elsewhere. */
const digestKey = randomBytes(32);
let lastId = 0;

export class EncryptedTransformer implements ValueTransformer {
  readonly id = ++lastId;
  readonly type: ValueType;
  readonly bind: 'row' | 'column' | undefined;
  readonly title: string;

  /** `bind`: what the entity expects to be registered; undefined where it takes what keyturn.yaml says. */
  constructor(type: ValueType, bind: 'row' | 'column' | undefined, title: string) {
    this.type = type;
    this.bind = bind;
    this.title = title;
  }

  from(stored: Stored | null | undefined): Sealed | null | undefined {
    return stored === null || stored === undefined ? stored : new Sealed(stored, this.title);
  }

  /** Throws VALUE_INVALID for a value of another type. */
  to(value: unknown): unknown {
    if (value === null || value === undefined) return value;
    if (value instanceof Sealed) return value.stored;
    if (isMarker(value)) return value;
    const digest = createHmac('sha256', digestKey)
      .update(encodeValue(this.type, value, this.title))
      .digest('base64');
    return `${markerStart}${this.id} ${digest}`;
  }
}

function isMarker(value: unknown): value is string {
  return typeof value === 'string' && value.startsWith(markerStart);
}

/** The transformer whose plaintext reached the parameters of a statement; undefined where none did. */
export function findMarker(parameters: readonly unknown[]): number | undefined {
  for (const parameter of parameters) {
    if (isMarker(parameter)) return Number(parameter.slice(markerStart.length).split(' ', 1)[0]);
    if (Array.isArray(parameter)) {
      const inside = findMarker(parameter);
      if (inside !== undefined) return inside;
    }
  }
  return undefined;
}
