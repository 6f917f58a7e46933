// What stands against moving a table's rows, decided from the catalogue alone: every shape that is not handled is refused
// or warned of, with a reason and a remedy. Nothing is ever skipped silently.
import type { AlgorithmName } from '../crypto/algorithms.js';
import { formatByName, formatNames } from '../formats/registry.js';
import { keyTags, targetTitle } from '../rotation/target.js';
import type { CatalogColumn, CatalogTable } from '../store/catalog.js';
import { bindingsLost, columnType, type RegisteredTarget } from '../store/registry.js';

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
  readonly columns: readonly {
    readonly name: string;
    readonly column: string;
    readonly path: readonly string[] | undefined;
    readonly format: string;
    readonly bind: 'row' | 'column';
  }[];
}

type Find = (level: 'warn' | 'refuse', check: string, subject: string, reason: string, remedy: string) => Finding;

const find: Find = (level, check, subject, reason, remedy) => ({ level, check, subject, reason, remedy });

/** Findings that are not `ok`; empty for a target without trouble. `table` is undefined where there is no such relation. */
export function examineTarget(
  target: ExaminedTarget,
  table: CatalogTable | undefined,
  algorithm: AlgorithmName | undefined,
): readonly Finding[] {
  const title = targetTitle(target);
  if (table === undefined)
    return [
      find(
        'refuse',
        'table',
        title,
        'there is no such table',
        'check the name in keyturn.yaml and the database in DATABASE_URL',
      ),
    ];
  return [
    ...examineRelation(title, table),
    ...examinePrimaryKey(title, table),
    ...examineKeySource(title, target, table),
    ...examineScope(title, target, table),
    ...target.columns.flatMap((column) => examineColumn(`${title}.${column.name}`, column, table, algorithm)),
    ...examineOverlaps(title, target),
    ...examineTriggers(title, target, table),
  ];
}

/**
 * The same for a registered target, under today's names, and whether its envelopes are still bound to what the table has.
 * `table` is the registered one, by oid.
 */
export function examineRegisteredTarget(
  target: RegisteredTarget,
  table: CatalogTable | undefined,
  algorithm: AlgorithmName | undefined,
): readonly Finding[] {
  if (table === undefined) {
    return [
      find(
        'warn',
        'table',
        targetTitle(target),
        'its table was dropped, so nothing of it is left to rotate',
        `keyturn target rename ${targetTitle(target)} NEW, if its rows live on in another table`,
      ),
    ];
  }
  const title = targetTitle(table);
  const nameOf = (attribute: number): string | undefined =>
    table.columns.find((column) => column.attribute === attribute)?.name;
  const scopeColumn =
    target.scopeAttribute === undefined ? undefined : (nameOf(target.scopeAttribute) ?? target.scopeName);
  const columns = target.columns.map(({ name, attribute, columnName, path, format, bind }) => ({
    name,
    column: nameOf(attribute) ?? columnName,
    path,
    format,
    bind,
  }));
  // A table without any primary key is refused for that already.
  const lost = (table.keyAttributes.length === 0 ? [] : bindingsLost(target, table, scopeColumn)).map((what) =>
    find(
      'refuse',
      'binding',
      title,
      `${what} is not the one it was registered with, and every envelope is bound to it`,
      'change it back',
    ),
  );
  return [
    ...examineTarget({ schema: table.schema, table: table.table, scopeColumn, columns }, table, algorithm),
    ...lost,
  ];
}

function examineRelation(title: string, table: CatalogTable): readonly Finding[] {
  const findings: Finding[] = [];
  if (table.kind !== 'r' && table.kind !== 'p') {
    const kind = { v: 'a view', m: 'a materialized view', f: 'a foreign table' }[table.kind] ?? 'not a table';
    findings.push(find('refuse', 'table', title, `it is ${kind}`, 'register the table that holds the rows'));
  }
  if (table.rowSecurity === 'applies') {
    findings.push(
      find(
        'refuse',
        'row security',
        title,
        'row-level security hides rows from the connected role, so they would be missed',
        `connect as a role with BYPASSRLS or as the owner: ALTER ROLE … BYPASSRLS`,
      ),
    );
  }
  if (table.rowSecurity === 'others') {
    findings.push(
      find(
        'warn',
        'row security',
        title,
        'row-level security is on; it does not apply to the connected role, but may to the role that workers connect as, whose batches would then be refused',
        'ALTER ROLE … BYPASSRLS for the role of the workers',
      ),
    );
  }
  if (table.updateRules.length > 0) {
    findings.push(
      find(
        'refuse',
        'rules',
        title,
        `rule ${table.updateRules.join(', ')} rewrites every UPDATE, so rows would not change, or not alone`,
        'replace it by a trigger',
      ),
    );
  }
  if (table.partitionOf !== undefined) {
    findings.push(
      find(
        'refuse',
        'partitions',
        title,
        `it is a partition of ${table.partitionOf}, and a row that moves to another partition would leave its envelope unreadable`,
        `register ${table.partitionOf}`,
      ),
    );
  }
  if (table.foreignPartitions.length > 0) {
    findings.push(
      find(
        'refuse',
        'partitions',
        title,
        `it has foreign partitions (${table.foreignPartitions.join(', ')}), whose rows cannot be moved here`,
        'detach them, or move their rows where they live',
      ),
    );
  }
  if (table.inheritingTables.length > 0) {
    findings.push(
      find(
        'refuse',
        'inheritance',
        title,
        `tables inherit from it (${table.inheritingTables.join(', ')}), so its primary key does not cover all its rows`,
        'use declarative partitioning, or register the children and the parent without inheritance',
      ),
    );
  }
  return findings;
}

function examinePrimaryKey(title: string, table: CatalogTable): readonly Finding[] {
  if (table.keyAttributes.length === 0) {
    return [
      find(
        'refuse',
        'primary key',
        title,
        'it has no primary key, so its rows have no address',
        `ALTER TABLE ${title} ADD COLUMN id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY`,
      ),
    ];
  }
  const findings: Finding[] = [];
  if (table.isKeyDeferrable)
    findings.push(
      find(
        'refuse',
        'primary key',
        title,
        'its primary key is deferrable, so it may hold duplicates inside a transaction',
        'make it NOT DEFERRABLE',
      ),
    );
  for (const attribute of table.keyAttributes) {
    const column = table.columns.find((candidate) => candidate.attribute === attribute);
    if (column === undefined) continue;
    if (keyTags[column.type] !== undefined && !column.isDomain) {
      if (!column.isLooselyCollated) continue;
      findings.push(
        find(
          'warn',
          'primary key',
          `${title}.${column.name}`,
          'its collation calls different texts equal, but envelopes are bound to the exact text',
          'address each row by its key as it is stored',
        ),
      );
      continue;
    }
    findings.push(
      find(
        'refuse',
        'primary key',
        `${title}.${column.name}`,
        `a ${column.type} key prints differently by setting or padding, so it cannot be bound into envelopes`,
        `use one of ${Object.keys(keyTags).join(', ')}, or add an identity column as primary key`,
      ),
    );
  }
  return findings;
}

/** A value that is bound to its row is encrypted before the row is written, so its key must be known by then. */
function examineKeySource(title: string, target: ExaminedTarget, table: CatalogTable): readonly Finding[] {
  if (target.columns.every(({ bind }) => bind === 'column')) return [];
  return table.keyAttributes.flatMap((attribute) => {
    const column = table.columns.find((candidate) => candidate.attribute === attribute);
    if (column === undefined) return [];
    // TypeORM's integration makes uuids itself and takes the numbers of a sequence beforehand.
    if (column.hasDefault && !column.isNumbered && column.type !== 'uuid')
      return [
        find(
          'warn',
          'primary key',
          `${title}.${column.name}`,
          'its default is an expression that only the database can work out, so a value cannot be bound to its row before the row is there, unless the application names the key itself',
          `set the key in the application, make the default nextval('a sequence'), or bind: column`,
        ),
      ];
    if (!column.isAlwaysIdentity) return [];
    return [
      find(
        'warn',
        'primary key',
        `${title}.${column.name}`,
        'only the database can make its numbers, so a value cannot be bound to its row before the row is there',
        `ALTER TABLE ${title} ALTER COLUMN ${column.name} SET GENERATED BY DEFAULT, or bind: column`,
      ),
    ];
  });
}

function examineScope(title: string, target: ExaminedTarget, table: CatalogTable): readonly Finding[] {
  if (target.scopeColumn === undefined) return [];
  const column = table.columns.find((candidate) => candidate.name === target.scopeColumn);
  if (column === undefined)
    return [
      find(
        'refuse',
        'scope',
        `${title}.${target.scopeColumn}`,
        'there is no such tenant column',
        'check scope: in keyturn.yaml',
      ),
    ];
  if (target.columns.some((encrypted) => encrypted.column === column.name)) {
    return [
      find(
        'refuse',
        'scope',
        `${title}.${column.name}`,
        'the tenant column is itself encrypted, and envelopes are bound to it',
        'name a column that is not encrypted',
      ),
    ];
  }
  if (keyTags[column.type] !== undefined) return [];
  return [
    find(
      'refuse',
      'scope',
      `${title}.${column.name}`,
      `a tenant column of type ${column.type} has no one text form`,
      `use one of ${Object.keys(keyTags).join(', ')}`,
    ),
  ];
}

function examineColumn(
  subject: string,
  column: ExaminedTarget['columns'][number],
  table: CatalogTable,
  algorithm: AlgorithmName | undefined,
): readonly Finding[] {
  const found = table.columns.find((candidate) => candidate.name === column.column);
  if (found === undefined)
    return [
      find(
        'refuse',
        'column',
        subject,
        `the table has no column "${column.column}"`,
        'check the name in keyturn.yaml; a renamed column is followed by keyturn init under its new name',
      ),
    ];
  const format = formatByName(column.format);
  if (format === undefined)
    return [
      find('refuse', 'format', subject, `format "${column.format}" is unknown`, `use one of ${formatNames.join(', ')}`),
    ];
  const findings: Finding[] = [
    ...examineColumnType(subject, column, found),
    ...examineDependents(subject, table, found, column.path !== undefined),
  ];
  if (found.hasDefault && column.path === undefined) {
    findings.push(
      find(
        'warn',
        'default',
        subject,
        'a row inserted without a value takes the default of the column, which is no envelope',
        `ALTER TABLE … ALTER COLUMN "${column.column}" DROP DEFAULT`,
      ),
    );
  }
  if (table.keyAttributes.includes(found.attribute))
    findings.push(
      find(
        'refuse',
        'column',
        subject,
        'it is part of the primary key, which envelopes are bound to',
        'encrypt another column',
      ),
    );
  if (found.maxLength !== undefined && algorithm !== undefined) {
    const least = format.storedLength(0, algorithm, 'text');
    if (found.maxLength < least) {
      findings.push(
        find(
          'refuse',
          'length',
          subject,
          `varchar(${found.maxLength}) is too short: the envelope of an empty value takes ${least} characters`,
          `ALTER TABLE … ALTER COLUMN "${column.column}" TYPE text`,
        ),
      );
    } else {
      findings.push(
        find(
          'warn',
          'length',
          subject,
          `varchar(${found.maxLength}) holds envelopes of plaintexts up to ${longestPlaintext(found.maxLength, algorithm, format)} bytes`,
          `ALTER TABLE … ALTER COLUMN "${column.column}" TYPE text lifts the limit without rewriting the table`,
        ),
      );
    }
  }
  return findings;
}

function longestPlaintext(
  maxLength: number,
  algorithm: AlgorithmName,
  format: NonNullable<ReturnType<typeof formatByName>>,
): number {
  let bytes = 0;
  while (format.storedLength(bytes + 1, algorithm, 'text') <= maxLength) bytes++;
  return bytes;
}

function examineColumnType(
  subject: string,
  column: ExaminedTarget['columns'][number],
  found: CatalogColumn,
): readonly Finding[] {
  if (found.isGenerated)
    return [
      find(
        'refuse',
        'generated column',
        subject,
        'it is generated, so it cannot be rewritten',
        'register the column it is generated from',
      ),
    ];
  const type = found.isDomain ? undefined : columnType(found.type);
  if (column.path !== undefined && type !== 'jsonb')
    return [
      find(
        'refuse',
        'column type',
        subject,
        `paths need a jsonb column, this one is ${found.type}`,
        'change it to jsonb, or register it without paths',
      ),
    ];
  if (column.path === undefined && type === 'jsonb')
    return [
      find(
        'refuse',
        'column type',
        subject,
        'a whole jsonb column holds no envelope',
        'name the paths that are encrypted: { paths: { name: [key, …] } }',
      ),
    ];
  if (type !== undefined) return [];
  return [
    find(
      'refuse',
      'column type',
      subject,
      `${found.type} holds no envelopes`,
      'use text, varchar, bytea, or jsonb with paths',
    ),
  ];
}

function examineDependents(
  subject: string,
  table: CatalogTable,
  found: CatalogColumn,
  isDocument: boolean,
): readonly Finding[] {
  return table.dependents
    .filter((dependent) => dependent.attribute === found.attribute)
    .map(({ kind, name }) => {
      switch (kind) {
        case 'view':
          return find(
            'warn',
            'materialized view',
            subject,
            `materialized view ${name} keeps copies of envelopes until refreshed`,
            `REFRESH MATERIALIZED VIEW ${name} after the run, and drop it before retiring the key`,
          );
        case 'check':
          return find(
            'warn',
            'check',
            subject,
            `check ${name} reads the envelope, and a failing check prints the row`,
            'make sure that it holds for every envelope, or drop it',
          );
        case 'foreign key':
          return find(
            'refuse',
            'foreign key',
            subject,
            `foreign key ${name} compares envelopes, which always differ`,
            'drop it; refer to another column',
          );
        default:
          return isDocument ? documentDependent(subject, kind, name) : cellDependent(subject, kind, name);
      }
    });
}

type Derived = 'index' | 'unique index' | 'generated column';

function cellDependent(subject: string, kind: Derived, name: string): Finding {
  switch (kind) {
    case 'unique index':
      return find(
        'refuse',
        'unique index',
        subject,
        `unique index ${name} compares envelopes, which always differ, so it enforces nothing`,
        'drop it; use a keyed digest in a column of its own',
      );
    case 'generated column':
      return find(
        'refuse',
        'generated column',
        subject,
        `generated column ${name} is computed from the envelope`,
        'drop it; it changes with every rotation',
      );
    case 'index':
      return find(
        'warn',
        'index',
        subject,
        `index ${name} on the envelope slows every rewrite and finds nothing`,
        'drop it',
      );
  }
}

/** The catalogue does not tell which paths of a document an expression reads. */
function documentDependent(subject: string, kind: Derived, name: string): Finding {
  return find(
    'warn',
    kind,
    subject,
    `${kind} ${name} is computed from the document that holds the envelope`,
    'make sure that it reads other paths: from this one it gets an envelope, which changes with every rotation',
  );
}

/** Two registrations of the same bytes would write over each other. */
function examineOverlaps(title: string, target: ExaminedTarget): readonly Finding[] {
  return target.columns.flatMap((column, at) =>
    target.columns.slice(at + 1).flatMap((other) => {
      if (column.column !== other.column || column.path === undefined || other.path === undefined) return [];
      const shorter = column.path.length <= other.path.length ? column.path : other.path;
      const longer = shorter === column.path ? other.path : column.path;
      if (!shorter.every((segment, depth) => segment === longer[depth])) return [];
      return [
        find(
          'refuse',
          'paths',
          `${title}.${column.name}`,
          `its path contains, or equals, that of ${other.name}`,
          'let no registered path lie inside another',
        ),
      ];
    }),
  );
}

function examineTriggers(title: string, target: ExaminedTarget, table: CatalogTable): readonly Finding[] {
  const rewritten = new Set(target.columns.map(({ column }) => column));
  return table.updateTriggers
    .filter((trigger) => !trigger.optsOut && trigger.columns?.some((column) => rewritten.has(column)) !== false)
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
