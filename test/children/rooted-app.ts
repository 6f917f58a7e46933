// An application process that goes on reading and writing one value while its root key changes. Arguments: the content of
// keyturn.yaml, which customer is its own. Works from its first line to SIGTERM, prints how much, and dies of any failure.
import { setImmediate as turn } from 'node:timers/promises';
import pg from 'pg';
import { openKeyturn } from '../../src/app.js';
import type { ConfigFile } from '../../src/config.js';

const [config, id] = process.argv.slice(2).map((argument) => JSON.parse(argument) as unknown) as [ConfigFile, number];
let isStopping = false;
process.once('SIGTERM', () => {
  isStopping = true;
});
const keyturn = await openKeyturn({ config, name: `app-${id}` });
const email = keyturn.column('public.customer', 'email');
const client = new pg.Client({ connectionString: process.env['DATABASE_URL'] });
await client.connect();
const row = { pk: id, scope: `tenant-${id % 3}` };
process.stdout.write(`working: pid ${process.pid}\n`);

let done = 0;
for (; !isStopping; done++) {
  const value = `value ${done} of ${process.pid}`;
  await client.query('UPDATE customer SET email = $2 WHERE id = $1', [id, await email.encrypt(row, value)]);
  const { rows } = await client.query<{ email: string }>('SELECT email FROM customer WHERE id = $1', [id]);
  const { plaintext } = await email.decrypt(row, rows[0]?.email ?? '');
  if (plaintext !== value) throw new Error('it does not read as it was written');
  await turn();
}
process.stdout.write(`worked: ${done} times\n`);
await client.end();
await keyturn.close();
