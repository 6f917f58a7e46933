// The README's tour, executed as a newcomer would: its files written, its commands run in order, in a copy of the checkout.
import { spawnSync } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createTestDatabase } from '../support/database.js';
import { blocksOf, type Block } from '../support/page.js';

const checkout = resolve(import.meta.dirname, '../..');
const tour =
  readFileSync(join(checkout, 'README.md'), 'utf8').split('## Five-minute tour')[1]?.split('## In production')[0] ?? '';

const blocks = blocksOf(tour);

/** `// name.mjs` or `# name.yaml` on the first line of a block names the file it stands for. */
function fileNameOf(block: Block): string | undefined {
  return /^(?:\/\/|#) (\S+\.(?:mjs|yaml))\n/.exec(block.text)?.[1];
}

let folder: string;
let database: Awaited<ReturnType<typeof createTestDatabase>>;

beforeAll(async () => {
  database = await createTestDatabase();
  folder = mkdtempSync(join(tmpdir(), 'keyturn-tour-'));
  for (const name of ['package.json', 'tsconfig.json', 'tsconfig.build.json', 'src', 'workers', 'dist'])
    cpSync(join(checkout, name), join(folder, name), { recursive: true });
  symlinkSync(join(checkout, 'node_modules'), join(folder, 'node_modules'));
});

afterAll(async () => {
  rmSync(folder, { recursive: true, force: true });
  await database.drop();
});

test('the five-minute tour of the README works from top to bottom', { timeout: 180_000 }, () => {
  const script = ['set -e', 'unset REDIS_URL'];
  for (const block of blocks) {
    const name = fileNameOf(block);
    if (name !== undefined) writeFileSync(join(folder, name), block.text);
    else if (block.language === 'sh')
      script.push(block.text.replace(/^export DATABASE_URL=.*$/m, `export DATABASE_URL='${database.url}'`));
  }
  writeFileSync(join(folder, 'tour.sh'), script.join('\n'));
  const { stdout, stderr, status } = spawnSync('bash', ['tour.sh'], {
    cwd: folder,
    encoding: 'utf8',
    env: { ...process.env, LOG_LEVEL: 'silent' },
  });
  expect({ status, stderr: status === 0 ? '' : stderr }).toEqual({ status: 0, stderr: '' });
  expect(stdout).toContain("plaintext: 'person-7@example.com'");
  expect(stdout).toMatch(/people v2/);
  expect(stdout).toMatch(/nothing to do/);
});
