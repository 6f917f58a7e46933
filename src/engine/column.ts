// One encrypted column in an application's hands: encrypt before writing, decrypt after reading. Binds the value to its
// cell (I2), so the caller names the row; never returns null or the envelope in place of plaintext (I8).
import { isUtf8 } from 'node:buffer';
import { decrypt, encrypt, type Cell } from '../codec.js';
import { isWellFormed } from '../crypto/encoding.js';
import { isKeyturnError, KeyturnError } from '../errors.js';
import type { Stored } from '../formats/format.js';
import type { KeyId } from '../crypto/value-key.js';
import { targetTitle, type KeyColumn, type RowKey, type Target } from '../rotation/target.js';
import { createCellBuilder } from './cells-of-target.js';
import type { LazyUpgrades } from './lazy-upgrade.js';
import type { KeyringSource } from './services.js';

/** One key value: integers as number, bigint or decimal text; UUIDs and text as string. */
export type KeyValue = string | number | bigint;

export interface RowAddress {
  /** The primary key: a value, or for a composite key an object by column name or an array in key order. */
  readonly pk: KeyValue | readonly KeyValue[] | Readonly<Record<string, KeyValue>>;
  /** The tenant column's value, where the target has one; null for a row whose tenant column is NULL. */
  readonly scope?: KeyValue | null;
}

export interface DecryptedValue<Plaintext> {
  readonly plaintext: Plaintext;
  readonly keyId: KeyId;
  /** The value is not under the active key; a rotation has still to move it. */
  readonly stale: boolean;
}

/** `Plaintext` is string for text, varchar and jsonb columns, Buffer for bytea; an envelope to store is of the same type. */
export interface Column<Plaintext extends string | Buffer = string | Buffer> {
  /**
   * The envelope to store. Throws VALUE_INVALID for an address or plaintext that does not fit, KEYRING_STALE when the
   * control tables have not answered for 30 s.
   */
  encrypt(row: RowAddress, plaintext: string | Uint8Array): Promise<Plaintext>;
  /** Throws DECRYPT_FAILED for whatever does not decrypt at this cell, KEY_NOT_HELD for a key this process cannot get. */
  decrypt(row: RowAddress, stored: Stored): Promise<DecryptedValue<Plaintext>>;
  /**
   * After a decrypt that gave `stale: true`, and outside your transaction: the row is brought to the active key soon, by a
   * lazy upgrade. Throws VALUE_INVALID for an address that does not fit; whether the write succeeds is not told.
   */
  upgrade(row: Pick<RowAddress, 'pk'>): void;
}

/** Throws TARGET_NOT_FOUND when the target has no such column. */
export function createColumn(
  keyrings: KeyringSource,
  target: Target,
  columnName: string,
  upgrades: Pick<LazyUpgrades, 'offer'>,
): Column {
  const position = target.columns.findIndex((column) => column.name === columnName);
  const column = target.columns[position];
  const title = `${targetTitle(target)}.${columnName}`;
  if (column === undefined) {
    throw new KeyturnError(
      'TARGET_NOT_FOUND',
      `target ${targetTitle(target)} has no encrypted column "${columnName}"; it has: ${target.columns.map(({ name }) => name).join(', ')}`,
      { target: targetTitle(target) },
    );
  }
  const builder = createCellBuilder(target, keyrings.current(target.keyringName).cluster);
  const isText = column.sqlType !== 'bytea';

  function cellAt(row: RowAddress): Cell {
    if (typeof row !== 'object' || row === null)
      throw new KeyturnError(
        'VALUE_INVALID',
        `expected the address { pk${target.scope === undefined ? '' : ', scope'} } of a row of ${targetTitle(target)}, got ${row === null ? 'null' : typeof row}`,
        { column: title },
      );
    return builder.cellsOf(keyTextOf(target, row.pk), scopeTextOf(target, row))(position);
  }

  return {
    async encrypt(row, plaintext) {
      const stored = encrypt(keyrings.forWriting(target.keyringName), cellAt(row), bytesOf(title, plaintext, isText));
      if (column.maxLength !== undefined && stored.length > column.maxLength) {
        throw new KeyturnError(
          'VALUE_INVALID',
          `the envelope takes ${stored.length} characters and ${title} holds ${column.maxLength}; shorten the value or ALTER the column to text`,
          { column: title },
        );
      }
      return stored;
    },
    async decrypt(row, stored) {
      refuseNoCell(title, stored, isText);
      const cell = cellAt(row);
      const { plaintext, keyId, stale } = await decryptOrRefresh(keyrings, target, cell, stored);
      return { plaintext: isText ? textOf(title, plaintext) : plaintext, keyId, stale };
    },
    upgrade: (row) => upgrades.offer(target, keyTextOf(target, row.pk)),
  };
}

/** A key this process does not hold may be new: one refresh of the whole keyring, never a fetch by id. */
async function decryptOrRefresh(
  keyrings: KeyringSource,
  target: Target,
  cell: Cell,
  stored: Stored,
): Promise<ReturnType<typeof decrypt>> {
  try {
    return decrypt(keyrings.current(target.keyringName), cell, stored);
  } catch (error) {
    if (!isKeyturnError(error, 'KEY_NOT_HELD')) throw error;
    return decrypt(await keyrings.refresh(target.keyringName), cell, stored);
  }
}

function refuseNoCell(title: string, stored: unknown, isText: boolean): void {
  const expected = isText ? 'string' : 'Buffer';
  if (isText ? typeof stored === 'string' : Buffer.isBuffer(stored)) return;
  const seen =
    stored === null || stored === undefined ? 'NULL, which is no cell: there is nothing to decrypt' : typeof stored;
  throw new KeyturnError('VALUE_INVALID', `expected the stored ${expected} of ${title}, got ${seen}`, {
    column: title,
  });
}

function bytesOf(title: string, plaintext: unknown, isText: boolean): Uint8Array {
  if (plaintext instanceof Uint8Array) {
    // A text column gives text back, so bytes that are none could be written and never be read.
    if (isText && !isUtf8(plaintext))
      throw new KeyturnError(
        'VALUE_INVALID',
        `the bytes for ${title} are not UTF-8 text; keep bytes in a bytea column`,
        { column: title },
      );
    return plaintext;
  }
  if (typeof plaintext === 'string') {
    if (!isWellFormed(plaintext))
      throw new KeyturnError(
        'VALUE_INVALID',
        `the plaintext for ${title} holds half a surrogate pair, which UTF-8 cannot keep`,
        { column: title },
      );
    return Buffer.from(plaintext, 'utf8');
  }
  const seen =
    plaintext === null || plaintext === undefined ? 'NULL, which is no cell: store NULL itself' : typeof plaintext;
  throw new KeyturnError('VALUE_INVALID', `expected a string or bytes to encrypt for ${title}, got ${seen}`, {
    column: title,
  });
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

function textOf(title: string, plaintext: Buffer): string {
  try {
    return utf8.decode(plaintext);
  } catch {
    throw new KeyturnError(
      'VALUE_INVALID',
      `the value of ${title} decrypted, but it is not UTF-8 text; keep bytes in a bytea column`,
      { column: title },
    );
  }
}

/** The primary key as PostgreSQL prints it. Throws VALUE_INVALID. */
export function keyTextOf(target: Target, pk: RowAddress['pk']): RowKey {
  const values = keyValuesOf(target, pk);
  if (values.length !== target.key.length) {
    throw new KeyturnError(
      'VALUE_INVALID',
      `the primary key of ${targetTitle(target)} has ${target.key.length} columns (${target.key.map(({ name }) => name).join(', ')}), got ${values.length}`,
      { target: targetTitle(target) },
    );
  }
  return target.key.map((column, part) => partText(targetTitle(target), column, values[part]));
}

function keyValuesOf(target: Target, pk: unknown): readonly (KeyValue | undefined)[] {
  if (Array.isArray(pk)) return pk as readonly KeyValue[];
  if (typeof pk === 'object' && pk !== null)
    return target.key.map(({ name }) =>
      Object.hasOwn(pk, name) ? (pk as Readonly<Record<string, KeyValue>>)[name] : undefined,
    );
  return [(pk ?? undefined) as KeyValue | undefined];
}

function partText(title: string, column: Pick<KeyColumn, 'name' | 'tag'>, value: KeyValue | undefined): string {
  switch (column.tag) {
    case 'int':
      if (typeof value === 'bigint' || (typeof value === 'number' && Number.isSafeInteger(value)))
        return (value === 0 ? 0 : value).toString();
      if (typeof value === 'string' && /^-?\d{1,19}$/.test(value)) return BigInt(value).toString();
      break;
    case 'uuid':
      if (typeof value === 'string' && /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(value))
        return value.toLowerCase();
      break;
    case 'text':
      if (typeof value === 'string') return value;
      break;
  }
  const expected = {
    int: 'an integer (number, bigint or decimal text)',
    uuid: 'a UUID in 8-4-4-4-12 form',
    text: 'a string',
  }[column.tag];
  throw new KeyturnError(
    'VALUE_INVALID',
    `expected ${expected} for ${title}.${column.name}, got ${value === undefined || value === null ? 'nothing' : typeof value}`,
    { target: title },
  );
}

/** The tenant as PostgreSQL prints it, null for none. Throws VALUE_INVALID. */
export function scopeTextOf(target: Target, row: Pick<RowAddress, 'scope'>): string | null {
  const title = targetTitle(target);
  if (target.scope === undefined) {
    if (row.scope === undefined) return null;
    throw new KeyturnError(
      'VALUE_INVALID',
      `target ${title} has no tenant column, so { scope } has no meaning for it`,
      { target: title },
    );
  }
  if (row.scope === null) return null;
  if (row.scope === undefined) {
    throw new KeyturnError(
      'VALUE_INVALID',
      `values of ${title} are bound to their tenant: pass { scope } with the row's ${target.scope.name}, null if that is NULL`,
      { target: title },
    );
  }
  const tag =
    target.scope.type === 'uuid'
      ? 'uuid'
      : target.scope.type === 'text' || target.scope.type === 'character varying'
        ? 'text'
        : 'int';
  return partText(title, { name: target.scope.name, tag }, row.scope);
}
