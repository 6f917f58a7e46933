// Two workers as an operator starts them on two machines: the built entry point, a working directory of its own each, and
// nothing in the environment but database, queue and root key.
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test, vi } from 'vitest';
import { describeCrypto } from '../../src/crypto/native-addon.js';
import { availableBackends } from '../support/backends.js';
import { startNode } from '../support/child.js';
import { findImbalances } from '../support/ledger.js';
import { findWrongNotes, noteRows, noteTexts, openNoteShop } from '../support/notes.js';
import { memberIdOf } from '../support/processes.js';
import { until } from '../support/until.js';

vi.setConfig({ testTimeout: 240_000 });

const deadlineMs = 60_000;
const workerEntry = join(import.meta.dirname, '..', '..', 'dist', 'workers', 'reencrypt.js');

function openDirectory(onTestFinished: (release: () => void) => void): string {
  const directory = mkdtempSync(join(tmpdir(), 'keyturn-elsewhere-'));
  onTestFinished(() => rmSync(directory, { recursive: true }));
  return directory;
}

describe.concurrent.each(availableBackends())('unrelated directories over the %s queue', (backend) => {
  test(`two workers that share only environment, database, queue and root key do the run together [${backend}]`, async ({
    onTestFinished,
  }) => {
    const shop = await openNoteShop(backend);
    onTestFinished(() => shop.close());
    const keyId = await shop.rotate();
    await shop.startSupervisor();
    const { LOG_LEVEL: _, ...environment } = shop.environment();
    const directories = [openDirectory(onTestFinished), openDirectory(onTestFinished)];
    const workers = directories.map((cwd) => startNode(workerEntry, { cwd, env: environment, onlyEnv: true }));
    for (const worker of workers)
      await until(async () => worker.stderr().includes('"msg":"worker ready"'), {
        what: `pid ${worker.pid} to be ready`,
        deadlineMs,
      });
    for (const worker of workers) expect(worker.stderr()).toContain(`"crypto":"${describeCrypto()}"`);

    const report = await shop.waitForRun(await shop.order(), deadlineMs);
    expect(report).toMatchObject({
      state: 'succeeded',
      target_key_id: keyId,
      rows_examined: noteRows,
      fields_reencrypted: noteTexts,
      fields_stale: 0,
    });
    for (const worker of workers) {
      const member = await memberIdOf(shop, worker);
      expect(
        await shop.query('SELECT DISTINCT batch_id FROM keyturn.ledger WHERE member_id = $1', [member]),
      ).not.toEqual([]);
      worker.kill('SIGTERM');
      expect(await worker.waitForExit(deadlineMs)).toEqual({ code: 143, signal: null });
    }
    expect(await findWrongNotes(shop, await shop.open())).toEqual([]);
    expect(await findImbalances(shop)).toEqual([]);
    expect(directories.flatMap((directory) => readdirSync(directory))).toEqual([]);
  });
});
