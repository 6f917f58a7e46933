// A shop with one long table of notes, few of them with a text: many batches at little cost, since a row without cells is
// planned, read and counted like any other.
import type { Keyturn } from '../../src/app.js';
import { openShop, type Backend, type Shop } from './shop.js';

export const noteRows = 20_000;
const rowsPerText = 100;

export const noteTexts = noteRows / rowsPerText;

export async function openNoteShop(backend: Backend): Promise<Shop> {
  const shop = await openShop({
    backend,
    config: {
      keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' } },
      targets: [{ table: 'public.note', keyring: 'customers', columns: { body: {} } }],
    },
    ddl: [
      'CREATE TABLE note (id bigint PRIMARY KEY, body text)',
      `INSERT INTO note SELECT generate_series(1, ${noteRows})`,
    ],
  });
  const keyturn = await shop.open();
  const column = keyturn.column('public.note', 'body');
  const ids = Array.from({ length: noteTexts }, (_, at) => rowsPerText * (at + 1));
  const texts = await Promise.all(ids.map((id) => column.encrypt({ pk: id }, textOf(id))));
  await shop.query(
    'UPDATE note SET body = n.body FROM unnest($1::bigint[], $2::text[]) AS n(id, body) WHERE note.id = n.id',
    [ids, texts],
  );
  await keyturn.close();
  return shop;
}

function textOf(id: number): string {
  return `note ${id}`;
}

/** Notes that do not decrypt to what was written. */
export async function findWrongNotes(shop: Shop, keyturn: Keyturn): Promise<number[]> {
  const column = keyturn.column('public.note', 'body');
  const wrong: number[] = [];
  for (const row of await shop.query('SELECT id::int, body FROM note WHERE body IS NOT NULL ORDER BY id')) {
    const id = Number(row['id']);
    if ((await column.decrypt({ pk: id }, String(row['body']))).plaintext !== textOf(id)) wrong.push(id);
  }
  return wrong;
}

/** Notes that no planned batch of a pass covers, or more than one. */
export async function findMisplanned(shop: Shop, pass: number): Promise<number[]> {
  const rows = await shop.query(
    `SELECT n.id::int FROM note n LEFT JOIN keyturn.batch b ON b.pass = $1 AND b.follows IS NULL
       AND (b.after_key IS NULL OR n.id > b.after_key[1]::bigint) AND n.id <= b.upto_key[1]::bigint
     GROUP BY n.id HAVING count(b.id) <> 1 ORDER BY n.id`,
    [pass],
  );
  return rows.map((row) => Number(row['id']));
}
