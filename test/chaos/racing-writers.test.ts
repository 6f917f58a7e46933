// An application that overwrites the very cells that move, hundreds of times while a slice is in a worker's hands, from real
// processes that use the library alone: no acknowledged write is lost, and the run ends.
import { describe, expect, test, vi } from 'vitest';
import type { Keyturn } from '../../src/app.js';
import { availableBackends } from '../support/backends.js';
import { startChild, type Child } from '../support/child.js';
import { findImbalances } from '../support/ledger.js';
import {
  customer,
  findDifferences,
  insertCustomers,
  openShop,
  shopConfig,
  type Backend,
  type Shop,
} from '../support/shop.js';
import { until } from '../support/until.js';

vi.setConfig({ testTimeout: 240_000 });

const deadlineMs = 60_000;
const customers = 600;
const writers = 2;
/** Rows of the first slice that must have been overwritten between its read and its write. */
const collisions = 3;
/** Each of the first slices is in hand for so many acknowledged writes, however slow the machine is. */
const hinderedSlices = 3;
const writesPerSlice = 200;

function startWriter(shop: Shop, mine: number): Child {
  const args = [shopConfig, mine, writers, customers].map((argument) => JSON.stringify(argument));
  return startChild('writer', { env: shop.environment(), onlyEnv: true, args });
}

/** The highest acknowledged sequence number per customer. */
function acknowledged(writer: Child): Map<number, number> {
  const highest = new Map<number, number>();
  for (const line of writer.lines) {
    const [, id, sequence] = /^wrote (\d+) (\d+)$/.exec(line) ?? [];
    if (id !== undefined) highest.set(Number(id), Number(sequence));
  }
  return highest;
}

interface Reading {
  readonly id: number;
  readonly email: string;
  readonly ssn: string;
}

/** What the customers decrypt to that some writer has written. */
async function readOverwritten(shop: Shop, keyturn: Keyturn): Promise<Reading[]> {
  const [email, ssn] = [keyturn.column('public.customer', 'email'), keyturn.column('public.customer', 'profile.ssn')];
  const rows = await shop.query(
    `SELECT id::int, tenant_id, email, profile ->> 'ssn' AS ssn FROM customer WHERE version > 1 ORDER BY id`,
  );
  return Promise.all(
    rows.map(async (row) => {
      const address = { pk: Number(row['id']), scope: String(row['tenant_id']) };
      return {
        id: address.pk,
        email: String((await email.decrypt(address, String(row['email']))).plaintext),
        ssn: String((await ssn.decrypt(address, String(row['ssn']))).plaintext),
      };
    }),
  );
}

async function countUntouched(shop: Shop): Promise<number> {
  return (await shop.query('SELECT 1 FROM customer WHERE id <= 50 AND version = 1')).length;
}

function countWrites(writer: Child): number {
  return writer.lines.filter((line) => line.startsWith('wrote ')).length;
}

/** A worker whose first slices wait, read and not yet written, until writers have overwritten rows of them. */
async function startHinderedWorker(shop: Shop, writes: () => number): Promise<void> {
  let slices = 0;
  await shop.startWorker(async (point) => {
    if (point !== 'batch.after_read' || slices >= hinderedSlices) return;
    const isFirst = slices++ === 0;
    const [before, untouched] = [writes(), isFirst ? await countUntouched(shop) : 0];
    await until(
      async () =>
        writes() >= before + writesPerSlice && (!isFirst || (await countUntouched(shop)) <= untouched - collisions),
      { what: `writers to overwrite rows of slice ${slices}`, deadlineMs },
    );
  });
}

async function openRacedShop(backend: Backend): Promise<Shop> {
  const shop = await openShop({ backend });
  const keyturn = await shop.open();
  await insertCustomers(
    shop,
    keyturn,
    Array.from({ length: customers }, (_, at) => at + 1),
  );
  await keyturn.close();
  return shop;
}

describe.concurrent.each(availableBackends())('racing writers over the %s queue', (backend) => {
  test(`I3 no acknowledged write to a cell in motion is lost [${backend}]`, async ({ onTestFinished }) => {
    const shop = await openRacedShop(backend);
    onTestFinished(() => shop.close());
    const processes = Array.from({ length: writers }, (_, mine) => startWriter(shop, mine));
    for (const writer of processes) await writer.waitForLine(/^ready/, deadlineMs);
    const keyId = await shop.rotate();
    const run = await shop.order();
    await shop.startSupervisor();
    for (const writer of processes) writer.kill('SIGUSR2');
    await startHinderedWorker(shop, () => processes.reduce((sum, writer) => sum + countWrites(writer), 0));
    const report = await shop.waitForRun(run, deadlineMs);

    // One ends in order and has acknowledged all it wrote; the other dies with up to two writes on their way.
    const [orderly, killed] = processes as [Child, Child];
    orderly.kill('SIGTERM');
    killed.kill('SIGKILL');
    expect(await orderly.waitForExit(deadlineMs)).toEqual({ code: 0, signal: null });
    expect(await killed.waitForExit(deadlineMs)).toEqual({ code: null, signal: 'SIGKILL' });

    expect(report).toMatchObject({ state: 'succeeded', target_key_id: keyId, fields_failed: 0, fields_stale: 0 });
    expect(report.rows_conflicted).toBeGreaterThanOrEqual(collisions);
    const sequences = new Map([...acknowledged(orderly), ...acknowledged(killed)]);
    const writes = [...sequences.values()].reduce((sum, sequence) => sum + sequence, 0);
    const seconds = (Date.parse(report.finished_at ?? '') - Date.parse(report.started_at ?? '')) / 1_000;
    process.stdout.write(
      `${writes} acknowledged writes, ${Math.round(writes / seconds)} a second, against ${report.fields_reencrypted} cells reencrypted: ${report.rows_conflicted} rows conflicted [${backend}]\n`,
    );
    expect(writes).toBeGreaterThanOrEqual(writesPerSlice);
    const reader = await shop.open();
    const readings = await readOverwritten(shop, reader);
    for (const { id, email } of readings) {
      const highest = sequences.get(id) ?? 0;
      expect(id % writers === 1 ? [highest, highest + 1] : [highest]).toContain(Number(email.replace(`${id}:`, '')));
    }
    // Both cells of a write are there or none, and every other cell is what it was.
    const overwritten = new Map(readings.map(({ id, email }) => [id, { email, ssn: email }]));
    expect(await findDifferences(shop, reader, (id) => ({ ...customer(id), ...overwritten.get(id) }))).toEqual([]);
    expect(await findImbalances(shop)).toEqual([]);
  });
});
