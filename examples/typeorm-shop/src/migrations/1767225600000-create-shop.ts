// Encrypted columns are text (or bytea), whatever the type of the property: an envelope is longer than its value.
import type { MigrationInterface, QueryRunner } from 'typeorm';

export class CreateShop1767225600000 implements MigrationInterface {
  async up(runner: QueryRunner): Promise<void> {
    await runner.query(`CREATE TABLE customer (
      id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
      tenant text NOT NULL,
      nickname text NOT NULL,
      email text NOT NULL,
      birthday text,
      preferences text,
      version integer NOT NULL,
      updated_at timestamptz NOT NULL DEFAULT now()
    )`);
    await runner.query(`CREATE TABLE purchase (
      id serial PRIMARY KEY,
      customer_id uuid REFERENCES customer,
      note text NOT NULL
    )`);
  }

  async down(runner: QueryRunner): Promise<void> {
    await runner.query('DROP TABLE purchase');
    await runner.query('DROP TABLE customer');
  }
}
