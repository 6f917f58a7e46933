// What stands in the tables of a schema, row by row with the transaction that wrote each: two equal images mean that not
// one row was written in between, not even with the same content.

interface Queries {
  query(text: string, parameters?: unknown[]): Promise<Record<string, unknown>[]>;
}

/** Table name to its rows as text. Tables of `without` are left out. */
export async function imageOf(
  database: Queries,
  schema: string,
  without: readonly string[] = [],
): Promise<Readonly<Record<string, readonly string[]>>> {
  const tables = await database.query(
    `SELECT relname, relkind = 'S' AS sequence FROM pg_class WHERE relnamespace = to_regnamespace($1) AND relkind IN ('r', 'S') ORDER BY relname`,
    [schema],
  );
  const image: Record<string, readonly string[]> = {};
  for (const { relname, sequence } of tables) {
    const name = String(relname);
    if (without.includes(name)) continue;
    const row = sequence === true ? 'last_value::text' : `xmin::text || ' ' || t::text`;
    const rows = await database.query(`SELECT ${row} AS row FROM ${schema}."${name}" t ORDER BY 1`);
    image[name] = rows.map(({ row }) => String(row));
  }
  return image;
}
