// A column that was registered over values of another form: plaintext, or another library's ciphertext. Until it is adopted a
// run would take every one of them for damaged, so none is started over it.
import { formatByName } from '../formats/registry.js';
import { targetTitle } from '../rotation/target.js';
import type { CatalogTable } from '../store/catalog.js';
import { cellExpression } from '../store/cells.js';
import type { Queryable } from '../store/database.js';
import { columnType, type RegisteredColumn, type RegisteredTarget } from '../store/registry.js';
import { sampleMarks } from '../store/sample.js';
import { storageOf } from './cells-of-target.js';
import type { Finding } from './preflight.js';

/** Whether some values of the column, as a bounded look sees them, are no envelopes. */
export async function holdsOtherForm(
  database: Queryable,
  table: CatalogTable,
  column: Omit<RegisteredColumn, 'awaitsAdoption'>,
): Promise<boolean> {
  const now = table.columns.find(({ attribute }) => attribute === column.attribute);
  const sqlType = now === undefined ? undefined : columnType(now.type);
  const format = formatByName(column.format);
  if (now === undefined || sqlType === undefined || format === undefined) return false;
  // Whoever may register a column may not always read it.
  const { rows } = await database.query(
    'SELECT has_column_privilege(oid, $2::smallint, $3) AND has_schema_privilege(relnamespace, $4) FROM pg_class WHERE oid = $1',
    [table.oid, now.attribute, 'SELECT', 'USAGE'],
  );
  if (rows[0]?.[0] !== true) return false;
  const cell = cellExpression({ columnName: now.name, path: column.path });
  const { cells, marked } = await sampleMarks(database, table, cell, format.sqlHasMagic(cell, storageOf({ sqlType })));
  return marked < cells;
}

/** Findings for the columns of a target that wait to be adopted and still hold values of another form. */
export async function examineAwaiting(
  database: Queryable,
  target: RegisteredTarget,
  table: CatalogTable | undefined,
): Promise<readonly Finding[]> {
  const findings: Finding[] = [];
  for (const column of target.columns) {
    if (!column.awaitsAdoption || table === undefined || !(await holdsOtherForm(database, table, column))) continue;
    findings.push({
      level: 'refuse',
      check: 'adoption',
      subject: `${targetTitle(table)}.${column.name}`,
      reason: 'it holds values of another form and is not prepared for them, so a run would put them into quarantine',
      remedy: `keyturn adopt --target ${targetTitle(table)} --column ${column.name} --from FORMAT --prepare`,
    });
  }
  return findings;
}
