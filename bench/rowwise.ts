// Bulk reencryption against what people write by hand: pages of rows read through TypeORM, each row saved with
// repository.update(), an AES-256-GCM transformer on the column. synchronous_commit off on both sides, one process each.
import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto';
import { DataSource, EntitySchema, MoreThan } from 'typeorm';
import { nativeAddon } from '../src/crypto/native-addon.js';
import { describeMoved, fill, median, openBench, plaintextBytes, reencryptTable, rotate } from './support.js';

const rounds = 5;
const path = nativeAddon === undefined ? 'node:crypto alone' : 'native';
const rows = 50_000;
/** The slow side is measured on fewer rows; both are rates. */
const rowwiseRows = 3_000;

interface Secret {
  id: string;
  secret: Buffer;
}

const oldKey = randomBytes(32);
const newKey = randomBytes(32);

function encryptValue(plaintext: Buffer): Buffer {
  const nonce = randomBytes(12);
  const cipher = createCipheriv('aes-256-gcm', newKey, nonce);
  return Buffer.concat([Buffer.from([2]), nonce, cipher.update(plaintext), cipher.final(), cipher.getAuthTag()]);
}

function decryptValue(stored: Buffer): Buffer {
  const decipher = createDecipheriv('aes-256-gcm', stored[0] === 2 ? newKey : oldKey, stored.subarray(1, 13));
  decipher.setAuthTag(stored.subarray(-16));
  return Buffer.concat([decipher.update(stored.subarray(13, -16)), decipher.final()]);
}

function encryptUnderOldKey(plaintext: Buffer): Buffer {
  const nonce = randomBytes(12);
  const cipher = createCipheriv('aes-256-gcm', oldKey, nonce);
  return Buffer.concat([Buffer.from([1]), nonce, cipher.update(plaintext), cipher.final(), cipher.getAuthTag()]);
}

const SecretEntity = new EntitySchema<Secret>({
  name: 'rowwise',
  columns: {
    id: { type: 'bigint', primary: true },
    secret: { type: 'bytea', transformer: { to: encryptValue, from: decryptValue } },
  },
});

const bench = await openBench(['moved']);
const dataSource = new DataSource({
  type: 'postgres',
  url: bench.url,
  entities: [SecretEntity],
  extra: { max: 1, options: '-c synchronous_commit=off' },
});
try {
  await dataSource.initialize();
  await bench.pool.query('CREATE TABLE rowwise (id bigint PRIMARY KEY, secret bytea) WITH (autovacuum_enabled = off)');
  await fill(bench, 'moved', 1, rows);
  const ours: number[] = [];
  const theirs: number[] = [];
  const breakdown: string[] = [];
  for (let round = 0; round < rounds; round++) {
    await bench.pool.query('VACUUM (FULL, ANALYZE) moved');
    await rotate(bench);
    const moved = await reencryptTable(bench, 'moved');
    ours.push(moved.rows / (moved.milliseconds / 1_000));
    breakdown.push(describeMoved(moved));
    await refill();
    theirs.push(await moveRowByRow());
  }
  process.stdout.write(
    `row by row, ${path}: ours ${Math.round(median(ours)).toLocaleString('en')} rows/s, repository.update() ${Math.round(median(theirs)).toLocaleString('en')} rows/s, ${(median(ours) / median(theirs)).toFixed(1)} times (figure: ≥ ${nativeAddon === undefined ? 15 : 40})\n`,
  );
  for (const line of breakdown) process.stdout.write(`  ${line}\n`);
} finally {
  await dataSource.destroy();
  await bench.close();
}

async function refill(): Promise<void> {
  await bench.pool.query('TRUNCATE rowwise');
  const ids = Array.from({ length: rowwiseRows }, (_, at) => at + 1);
  await bench.pool.query('INSERT INTO rowwise SELECT * FROM unnest($1::bigint[], $2::bytea[])', [
    ids,
    ids.map(() => encryptUnderOldKey(randomBytes(plaintextBytes))),
  ]);
  await bench.pool.query('VACUUM (ANALYZE) rowwise');
}

/** Rows per second. */
async function moveRowByRow(): Promise<number> {
  const repository = dataSource.getRepository(SecretEntity);
  const startedAt = performance.now();
  let last = '0';
  let moved = 0;
  for (;;) {
    const page = await repository.find({ where: { id: MoreThan(last) }, order: { id: 'ASC' }, take: 500 });
    const final = page.at(-1);
    if (final === undefined) break;
    for (const row of page) await repository.update(row.id, { secret: row.secret });
    moved += page.length;
    last = final.id;
  }
  return moved / ((performance.now() - startedAt) / 1_000);
}
