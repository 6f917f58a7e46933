// A real server whose archive is away and whose slot is not read: what gauges that begin then see of it, with and without
// pg_monitor, and how it ends.
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test, vi } from 'vitest';
import { Secret } from '../../src/crypto/secret.js';
import { findServerAccount, giveTo } from '../../src/embedded/account.js';
import { openGauges } from '../../src/engine/gauges.js';
import { optionalByDefault, type HealthSource } from '../../src/rotation/health.js';
import { decidePace, initialPaceState } from '../../src/rotation/pacing.js';
import { openDatabase, type Database } from '../../src/store/database.js';
import { canReplicate, startReplicatedPostgres } from '../support/replicated-postgres.js';
import { openShop } from '../support/shop.js';
import { until } from '../support/until.js';

vi.setConfig({ testTimeout: 180_000 });

const deadlineMs = 60_000;
/** Over the soft limit of 8, at 16 MB each. */
const backlog = 10;

test.skipIf(!canReplicate())(
  'gauges that begin while an archive is behind see the whole backlog, and its end, with pg_monitor and without',
  async ({ onTestFinished }) => {
    const folder = mkdtempSync(join(tmpdir(), 'keyturn-archive-'));
    onTestFinished(() => rmSync(folder, { recursive: true }));
    // The server may run as another user.
    chmodSync(folder, 0o755);
    const open = join(folder, 'open');
    const servers = await startReplicatedPostgres({
      archive_mode: 'on',
      archive_command: `case %f in *.history) ;; *) test -e ${open};; esac`,
      max_slot_wal_keep_size: '32MB',
      wal_keep_size: '0',
    });
    onTestFinished(() => servers.stop());
    const shop = await openShop({ adminUrl: servers.primaryUrl });
    onTestFinished(() => shop.close());
    await shop.query('CREATE ROLE narrow LOGIN');
    await shop.query('GRANT USAGE ON SCHEMA keyturn TO narrow');
    await shop.query('GRANT SELECT ON ALL TABLES IN SCHEMA keyturn TO narrow');
    const archiver = async (): Promise<Record<string, unknown>> =>
      (await shop.query('SELECT last_archived_wal AS archived, last_failed_wal AS failed FROM pg_stat_archiver'))[0] ??
      {};
    // As after a promotion: the history of a timeline was archived, and no segment since.
    const [{ data_directory: data } = {}] = await shop.query('SHOW data_directory');
    const wal = join(String(data), 'pg_wal');
    for (const name of ['00000002.history', join('archive_status', '00000002.history.ready')]) {
      writeFileSync(join(wal, name), '');
      giveTo(findServerAccount(), join(wal, name), 0o600);
    }
    await shop.query(`SELECT pg_create_physical_replication_slot('unread', true)`);
    for (let segment = 0; segment < backlog; segment++) {
      await shop.query(`SELECT pg_logical_emit_message(true, 'test', 'one more')`);
      await shop.query('SELECT pg_switch_wal()');
    }
    await until(
      async () => {
        const { archived, failed } = await archiver();
        return archived === '00000002.history' && /^[0-9A-F]{24}$/.test(String(failed));
      },
      { what: 'the history to be archived and a segment to be refused', deadlineMs },
    );

    const narrowUrl = new URL(shop.url);
    narrowUrl.username = 'narrow';
    const databases = [shop.url, narrowUrl.href].map((url) =>
      openDatabase({ url: new Secret(url), maxConnections: 3, applicationName: 'keyturn gauges' }),
    );
    onTestFinished(async () => void (await Promise.all(databases.map((database) => database.close()))));
    for (const database of databases) {
      expect(await valueOf(database, 'wal_archive')).toBeGreaterThanOrEqual(backlog);
      expect(await reasonOf(database, 'wal_archive')).toMatch(
        /\d\d segments of WAL wait to be archived \(soft limit 8\)/,
      );
    }
    // Its WAL was given up: 32 MB were all that it may hold.
    await shop.query('CHECKPOINT');
    for (const database of databases) {
      expect(await valueOf(database, 'slots')).toBe(2);
      expect(await reasonOf(database, 'slots')).toMatch(
        /replication slot unread holds back WAL \((unreserved|lost)\) \(hard limit unreserved\)/,
      );
    }
    await shop.query(`SELECT pg_drop_replication_slot('unread')`);

    writeFileSync(open, '');
    for (const database of databases)
      await until(async () => (await valueOf(database, 'wal_archive')) === 0, {
        what: 'the archive to catch up',
        deadlineMs,
      });
    expect(await archiver()).toMatchObject({ archived: expect.stringMatching(/^[0-9A-F]{24}$/) as string });
  },
);

/** What gauges that begin now say of it. */
async function look(database: Database): ReturnType<ReturnType<typeof openGauges>['look']> {
  return openGauges(database).look({
    settings: { cpus: undefined, optional: optionalByDefault },
    isMoving: false,
    paceChanges: 0,
  });
}

async function valueOf(database: Database, wanted: HealthSource): Promise<number | undefined> {
  const gauge = (await look(database)).find(({ source }) => source === wanted);
  return gauge !== undefined && 'readings' in gauge ? gauge.readings[0]?.value : undefined;
}

async function reasonOf(database: Database, wanted: HealthSource): Promise<string | undefined> {
  const gauges = (await look(database)).filter(({ source }) => source === wanted);
  return decidePace(initialPaceState, { gauges, workers: 2, isEmergency: false, isMoving: true, beside: undefined }, 0)
    .reason;
}
