// What stands against moving a table's rows, decided from the catalogue alone: every shape that is not handled is refused
// or warned of, with a reason and a remedy. Nothing is ever skipped silently.
import type { AlgorithmName } from '../crypto/algorithms.js';
import { formatByName, formatNames } from '../formats/registry.js';
import { keyTags, targetTitle } from '../rotation/target.js';
import type { CatalogColumn, CatalogTable } from '../store/catalog.js';
import { columnType } from '../store/registry.js';

export interface Finding {
  readonly level: 'ok' | 'warn' | 'refuse';
  readonly check: string;
  /** What it is about: a table, a column, a server. */
  readonly subject: string;
  readonly reason: string;
  readonly remedy: string;
}

/** A target as the file or the registry describes it. */
export interface ExaminedTarget {
  readonly schema: string;
  readonly table: string;
  readonly scopeColumn: string | undefined;
  readonly columns: readonly { readonly name: string; readonly column: string; readonly path: readonly string[] | undefined; readonly format: string; readonly bind: 'row' | 'column' }[];
}

type Find = (level: 'warn' | 'refuse', check: string, subject: string, reason: string, remedy: string) => Finding;

const find: Find = (level, check, subject, reason, remedy) => ({ level, check, subject, reason, remedy });

/** Findings that are not `ok`; empty for a target without trouble. `table` is undefined where there is no such relation. */
export function examineTarget(target: ExaminedTarget, table: CatalogTable | undefined, algorithm: AlgorithmName | undefined): readonly Finding[] {
  const title = targetTitle(target);
  if (table === undefined) return [find('refuse', 'table', title, 'there is no such table', 'check the name in keyturn.yaml and the database in DATABASE_URL')];
  return [
    ...examineRelation(title, table),
    ...examinePrimaryKey(title, table),
    ...examineScope(title, target, table),
    ...target.columns.flatMap((column) => examineColumn(`${title}.${column.name}`, column, table, algorithm)),
    ...examineOverlaps(title, target),
    ...examineTriggers(title, table),
  ];
}

function examineRelation(title: string, table: CatalogTable): readonly Finding[] {
  const findings: Finding[] = [];
  if (table.kind !== 'r' && table.kind !== 'p') {
    const kind = { v: 'a view', m: 'a materialized view', f: 'a foreign table' }[table.kind] ?? 'not a table';
    findings.push(find('refuse', 'table', title, `it is ${kind}`, 'register the table that holds the rows'));
  }
  if (table.rowSecurityApplies) {
    findings.push(find('refuse', 'row security', title, 'row-level security hides rows from the connected role, so they would be missed', `connect as a role with BYPASSRLS or as the owner: ALTER ROLE … BYPASSRLS`));
  }
  if (table.foreignPartitions.length > 0) {
    findings.push(find('refuse', 'partitions', title, `it has foreign partitions (${table.foreignPartitions.join(', ')}), whose rows cannot be moved here`, 'detach them, or move their rows where they live'));
  }
  if (table.inheritingTables.length > 0) {
    findings.push(find('refuse', 'inheritance', title, `tables inherit from it (${table.inheritingTables.join(', ')}), so its primary key does not cover all its rows`, 'use declarative partitioning, or register the children and the parent without inheritance'));
  }
  return findings;
}

function examinePrimaryKey(title: string, table: CatalogTable): readonly Finding[] {
  if (table.keyAttributes.length === 0) {
    return [find('refuse', 'primary key', title, 'it has no primary key, so its rows have no address', `ALTER TABLE ${title} ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY`)];
  }
  const findings: Finding[] = [];
  if (table.isKeyDeferrable) findings.push(find('refuse', 'primary key', title, 'its primary key is deferrable, so it may hold duplicates inside a transaction', 'make it NOT DEFERRABLE'));
  for (const attribute of table.keyAttributes) {
    const column = table.columns.find((candidate) => candidate.attribute === attribute);
    if (column === undefined || (keyTags[column.type] !== undefined && !column.isDomain)) continue;
    findings.push(
      find('refuse', 'primary key', `${title}.${column.name}`, `a ${column.type} key prints differently by setting or padding, so it cannot be bound into envelopes`, `use one of ${Object.keys(keyTags).join(', ')}, or add an identity column as primary key`),
    );
  }
  return findings;
}

function examineScope(title: string, target: ExaminedTarget, table: CatalogTable): readonly Finding[] {
  if (target.scopeColumn === undefined) return [];
  const column = table.columns.find((candidate) => candidate.name === target.scopeColumn);
  if (column === undefined) return [find('refuse', 'scope', `${title}.${target.scopeColumn}`, 'there is no such tenant column', 'check scope: in keyturn.yaml')];
  if (keyTags[column.type] !== undefined) return [];
  return [find('refuse', 'scope', `${title}.${column.name}`, `a tenant column of type ${column.type} has no one text form`, `use one of ${Object.keys(keyTags).join(', ')}`)];
}

function examineColumn(subject: string, column: ExaminedTarget['columns'][number], table: CatalogTable, algorithm: AlgorithmName | undefined): readonly Finding[] {
  const found = table.columns.find((candidate) => candidate.name === column.column);
  if (found === undefined) return [find('refuse', 'column', subject, `the table has no column "${column.column}"`, 'check the name in keyturn.yaml; a renamed column is followed by keyturn init under its new name')];
  const format = formatByName(column.format);
  if (format === undefined) return [find('refuse', 'format', subject, `format "${column.format}" is unknown`, `use one of ${formatNames.join(', ')}`)];
  const findings: Finding[] = [...examineColumnType(subject, column, found), ...examineDependents(subject, table, found)];
  if (table.keyAttributes.includes(found.attribute)) findings.push(find('refuse', 'column', subject, 'it is part of the primary key, which envelopes are bound to', 'encrypt another column'));
  if (found.maxLength !== undefined && algorithm !== undefined) {
    const least = format.storedLength(0, algorithm, 'text');
    if (found.maxLength < least) {
      findings.push(find('refuse', 'length', subject, `varchar(${found.maxLength}) is too short: the envelope of an empty value takes ${least} characters`, `ALTER TABLE … ALTER COLUMN "${column.column}" TYPE text`));
    } else {
      findings.push(find('warn', 'length', subject, `varchar(${found.maxLength}) holds envelopes of plaintexts up to ${longestPlaintext(found.maxLength, algorithm, format)} bytes`, `ALTER TABLE … ALTER COLUMN "${column.column}" TYPE text lifts the limit without rewriting the table`));
    }
  }
  return findings;
}

function longestPlaintext(maxLength: number, algorithm: AlgorithmName, format: NonNullable<ReturnType<typeof formatByName>>): number {
  let bytes = 0;
  while (format.storedLength(bytes + 1, algorithm, 'text') <= maxLength) bytes++;
  return bytes;
}

function examineColumnType(subject: string, column: ExaminedTarget['columns'][number], found: CatalogColumn): readonly Finding[] {
  if (found.isGenerated) return [find('refuse', 'generated column', subject, 'it is generated, so it cannot be rewritten', 'register the column it is generated from')];
  const type = found.isDomain ? undefined : columnType(found.type);
  if (column.path !== undefined && type !== 'jsonb') return [find('refuse', 'column type', subject, `paths need a jsonb column, this one is ${found.type}`, 'change it to jsonb, or register it without paths')];
  if (column.path === undefined && type === 'jsonb') return [find('refuse', 'column type', subject, 'a whole jsonb column holds no envelope', 'name the paths that are encrypted: { paths: { name: [key, …] } }')];
  if (type !== undefined) return [];
  return [find('refuse', 'column type', subject, `${found.type} holds no envelopes`, 'use text, varchar, bytea, or jsonb with paths')];
}

function examineDependents(subject: string, table: CatalogTable, found: CatalogColumn): readonly Finding[] {
  return table.dependents
    .filter((dependent) => dependent.attribute === found.attribute)
    .map(({ kind, name }) => {
      switch (kind) {
        case 'unique index':
          return find('refuse', 'unique index', subject, `unique index ${name} compares envelopes, which always differ, so it enforces nothing`, 'drop it; use a keyed digest in a column of its own');
        case 'generated column':
          return find('refuse', 'generated column', subject, `generated column ${name} is computed from the envelope`, 'drop it; it changes with every rotation');
        case 'check':
          return find('warn', 'check', subject, `check ${name} reads the envelope, and a failing check prints the row`, 'make sure that it holds for every envelope, or drop it');
        case 'view':
          return find('warn', 'materialized view', subject, `materialized view ${name} keeps copies of envelopes until refreshed`, `REFRESH MATERIALIZED VIEW ${name} after the run and before retiring the key`);
        case 'index':
          return find('warn', 'index', subject, `index ${name} on the envelope slows every rewrite and finds nothing`, 'drop it');
      }
    });
}

/** Two registrations of the same bytes would write over each other. */
function examineOverlaps(title: string, target: ExaminedTarget): readonly Finding[] {
  return target.columns.flatMap((column, at) =>
    target.columns.slice(at + 1).flatMap((other) => {
      if (column.column !== other.column || column.path === undefined || other.path === undefined) return [];
      const shorter = column.path.length <= other.path.length ? column.path : other.path;
      const longer = shorter === column.path ? other.path : column.path;
      if (!shorter.every((segment, depth) => segment === longer[depth])) return [];
      return [find('refuse', 'paths', `${title}.${column.name}`, `its path contains, or equals, that of ${other.name}`, 'let no registered path lie inside another')];
    }),
  );
}

function examineTriggers(title: string, table: CatalogTable): readonly Finding[] {
  return table.updateTriggers
    .filter((trigger) => !trigger.optsOut)
    .map((trigger) =>
      find(
        'warn',
        'trigger',
        title,
        `trigger ${trigger.name} fires when a row is rewritten: ${trigger.definition}`,
        `to leave it out of rotations, create it again with the clause WHEN (current_setting('keyturn.active', true) IS DISTINCT FROM '1')`,
      ),
    );
}
