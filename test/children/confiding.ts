// An application that confides marker plaintexts to Keyturn and then makes mistakes with them. Arguments: the content of
// keyturn.yaml, a file that takes the markers (neither output nor arguments may hold them), the number of customers. Prints
// every error it gets the way a careless application does, and on SIGTERM dies of one that nobody catches.
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { inspect } from 'node:util';
import pg from 'pg';
import { openKeyturn } from '../../src/app.js';
import type { ConfigFile } from '../../src/config.js';

const [config, file, customers] = process.argv.slice(2).map((argument) => JSON.parse(argument) as unknown) as [
  ConfigFile,
  string,
  number,
];
const toEnd = once(process, 'SIGTERM');
const keyturn = await openKeyturn({ config, name: 'confiding' });
const columns = ['email', 'phone', 'profile.ssn', 'profile.iban'].map((name) =>
  keyturn.column('public.customer', name),
);
const [email] = columns as [(typeof columns)[number]];
const client = new pg.Client({ connectionString: process.env['DATABASE_URL'] });
await client.connect();

function marker(what: string): string {
  return `CANARY-${what}-${randomBytes(12).toString('base64url')}`;
}

const markers: string[] = [];
for (let id = 1; id <= customers; id++) {
  const row = { pk: id, scope: 'tenant' };
  const plaintexts = ['mail', 'phone', 'ssn', 'iban'].map(marker);
  markers.push(...plaintexts);
  const stored = await Promise.all(columns.map((column, at) => column.encrypt(row, plaintexts[at] ?? '')));
  const profile = JSON.stringify({ ssn: stored[2], bank: { iban: stored[3] } });
  await client.query('INSERT INTO customer (id, tenant_id, email, phone, profile) VALUES ($1, $2, $3, $4, $5)', [
    id,
    row.scope,
    stored[0],
    stored[1],
    profile,
  ]);
}
writeFileSync(file, JSON.stringify(markers), { mode: 0o600 });

/** The envelope of the first customer, read as if it were the second's. */
async function readMoved(): Promise<unknown> {
  const { rows } = await client.query<{ email: string }>('SELECT email FROM customer WHERE id = 1');
  return email.decrypt({ pk: 2, scope: 'tenant' }, rows[0]?.email ?? '');
}

const [first = ''] = markers;
const mistakes: (() => Promise<unknown>)[] = [
  readMoved,
  () => email.decrypt({ pk: 1, scope: 'tenant' }, first),
  () => email.encrypt({ pk: first, scope: 'tenant' }, first),
  () => email.encrypt({ pk: { nothing: first }, scope: 'tenant' }, first),
  () => email.encrypt({ pk: 1 }, `${first}\uD800`),
];
for (const mistake of mistakes) {
  const error = await mistake().then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  process.stderr.write(`${inspect(error ?? 'went well')}\n`);
}
process.stdout.write(`confided: ${mistakes.length} mistakes\n`);
await toEnd;
await readMoved();
