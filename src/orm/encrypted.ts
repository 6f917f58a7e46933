// How an entity says that a property is encrypted: the decorator, and the same for EntitySchema.
import { Column, type ColumnOptions, type EntitySchemaColumnOptions } from 'typeorm';
import { KeyturnError } from '../errors.js';
import { EncryptedTransformer } from './transformer.js';
import type { ValueType } from './value-type.js';

/** Of TypeORM's column options those that have a meaning for a column of envelopes. */
type PassedOn = Pick<ColumnOptions, 'name' | 'nullable' | 'select' | 'insert' | 'update' | 'comment'>;

export interface EncryptedOptions extends PassedOn {
  /** The type of the property. Default: what TypeScript emits for it, where that says enough. */
  readonly type?: ValueType;
  /** SQL type of the column. Default: text, and bytea for a Buffer. */
  readonly columnType?: 'text' | 'varchar' | 'bytea';
  /** Characters of a varchar, for the envelope and not for the value. */
  readonly length?: number;
  /** Refuse to start where keyturn.yaml registered the column otherwise. */
  readonly bind?: 'row' | 'column';
}

/** A column whose values are stored encrypted. Takes the place of `@Column()`. Throws CONFIG_INVALID. */
export function Encrypted(options: EncryptedOptions = {}): PropertyDecorator {
  return (prototype, property) => {
    const title = `${prototype.constructor.name}.${String(property)}`;
    const type = options.type ?? emittedType(prototype, property, title);
    Column(columnOptions(options, type, title))(prototype, property);
  };
}

/** The same for the columns of an `EntitySchema`: `email: encryptedColumn({ type: 'string' })`. */
export function encryptedColumn(options: EncryptedOptions & { readonly type: ValueType }): EntitySchemaColumnOptions {
  return columnOptions(options, options.type, options.name ?? 'an encrypted column');
}

interface MadeOptions extends PassedOn {
  readonly type: 'text' | 'varchar' | 'bytea';
  readonly length?: number;
  readonly transformer: EncryptedTransformer;
}

function columnOptions(options: EncryptedOptions, type: ValueType, title: string): MadeOptions {
  const { type: _, columnType, bind, length, ...passedOn } = options;
  const sqlType = columnType ?? (type === 'buffer' ? 'bytea' : 'text');
  if (type === 'buffer' && sqlType !== 'bytea')
    throw new KeyturnError('CONFIG_INVALID', `${title} is a Buffer, so its column must be bytea, got ${sqlType}`, {
      property: title,
    });
  return {
    ...passedOn,
    ...(length === undefined ? {} : { length }),
    type: sqlType,
    transformer: new EncryptedTransformer(type, bind, title),
  };
}

interface ReflectedMetadata {
  getMetadata?: (key: string, target: object, property: string | symbol) => unknown;
}

function emittedType(prototype: object, property: string | symbol, title: string): ValueType {
  const emitted = (Reflect as ReflectedMetadata).getMetadata?.('design:type', prototype, property);
  switch (emitted) {
    case String:
      return 'string';
    case Number:
      return 'number';
    case BigInt:
      return 'bigint';
    case Boolean:
      return 'boolean';
    case Date:
      return 'date';
    case Buffer:
      return 'buffer';
  }
  throw new KeyturnError(
    'CONFIG_INVALID',
    `TypeScript does not emit what ${title} is; say it: @Encrypted({ type: 'string' | 'number' | 'bigint' | 'boolean' | 'date' | 'json' | 'buffer' })`,
    { property: title },
  );
}
