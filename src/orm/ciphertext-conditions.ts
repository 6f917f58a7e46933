// Conditions that compare an encrypted column: every envelope differs, so no row would match and nobody would be told. What
// find options compare is noticed by its parameter (transformer.ts); this is for conditions that are written as text.
import type { Alias } from 'typeorm/query-builder/Alias.js';
import { KeyturnError } from '../errors.js';
import type { Installation } from './installation.js';
import type { EncryptedEntity, EncryptedProperty } from './map-entities.js';

/** IS NULL and IS NOT NULL are none. */
const comparison = String.raw`(?:[=<>~]|!=|!~|(?:NOT\s+)?(?:I?LIKE|IN|BETWEEN|SIMILAR)\b|IS\s+(?:NOT\s+)?DISTINCT\b)`;
/** What one function makes of an envelope may be compared, its length for one; what is left of it as text may not. */
const notInFunction = String.raw`(?<!\b(?!(?:lower|upper|trim|btrim)\b)\w+\(\s*)`;

interface Patterns {
  /** The property behind its alias. */
  readonly named: RegExp;
  /** The alias left out as well. */
  readonly bare: RegExp;
}

const patterns = new WeakMap<EncryptedEntity, Map<string, Patterns>>();

/** `sql`: as TypeORM puts it together, before it has escaped names. Throws VALUE_INVALID. */
export function refuseCiphertextConditions(installation: Installation, aliases: readonly Alias[], sql: string): void {
  if (sql === '') return;
  let text: string | undefined;
  for (const alias of aliases) {
    const entity = alias.hasMetadata ? installation.entityOf(alias.metadata) : undefined;
    if (entity === undefined) continue;
    text ??= sql.replaceAll(/'(?:[^']|'')*'/g, "''");
    const { named, bare } = patternsOf(entity, alias.name);
    // A name alone inside of a subquery may be that of another table's column.
    const found = (/\bselect\b/i.test(text) ? named : bare).exec(text);
    const name = found?.groups?.['before'] ?? found?.groups?.['after'];
    const property = name === undefined ? undefined : propertyNamed(entity, name);
    if (property !== undefined) throw notComparable(property.title);
  }
}

export function notComparable(title: string): KeyturnError {
  return new KeyturnError(
    'VALUE_INVALID',
    `${title} is encrypted, and every envelope differs, so no row would match; find rows by another property (IsNull and Not(IsNull()) work), see docs/typeorm.md`,
    { property: title },
  );
}

function patternsOf(entity: EncryptedEntity, alias: string): Patterns {
  const known = patterns.get(entity) ?? new Map<string, Patterns>();
  patterns.set(entity, known);
  const made = known.get(alias) ?? makePatterns(entity, alias);
  known.set(alias, made);
  return made;
}

function makePatterns(entity: EncryptedEntity, alias: string): Patterns {
  const names = entity.properties
    .flatMap(({ metadata }) => [metadata.propertyPath, metadata.databaseName])
    .map(escaped)
    .join('|');
  const owners = [alias, entity.metadata.tableName].map((owner) => `"?${escaped(owner)}"?\\.`).join('|');
  const pattern = (owner: string): RegExp => {
    const column = (group: string): string =>
      String.raw`(?<![\w".:$])${notInFunction}${owner}"?(?<${group}>${names})"?(?![\w".(])`;
    const behind = String.raw`\s*(?:\)\s*)*(?:::\s*\w+\s*)?(?:COLLATE\s+\S+\s*)?${comparison}`;
    const ahead = String.raw`(?:[=<>~]|\bI?LIKE\b)\s*(?:(?:lower|upper|trim|btrim)?\(\s*)*`;
    return new RegExp(`${column('before')}${behind}|${ahead}${column('after')}`, 'i');
  };
  return { named: pattern(`(?:${owners})`), bare: pattern(`(?:${owners})?`) };
}

function propertyNamed(entity: EncryptedEntity, name: string): EncryptedProperty | undefined {
  const sought = name.toLowerCase();
  return entity.properties.find(({ metadata }) =>
    [metadata.propertyPath, metadata.databaseName].some((known) => known.toLowerCase() === sought),
  );
}

function escaped(text: string): string {
  return text.replaceAll(/[$()*+.?[\\\]^{|}]/g, String.raw`\$&`);
}
