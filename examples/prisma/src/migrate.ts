// Creates the table. Runs before `keyturn init`, so it does not open Keyturn.
import pg from 'pg';

const client = new pg.Client({ connectionString: process.env['DATABASE_URL'] });
await client.connect();
await client.query(
  'CREATE TABLE customer (id uuid PRIMARY KEY, tenant text NOT NULL, nickname text NOT NULL, email text NOT NULL)',
);
await client.end();
