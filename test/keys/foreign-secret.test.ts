// Secrets of foreign formats: where they may lie, and what is said when they are not there.
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { createForeignOpener } from '../../src/engine/foreign-keys.js';
import { loadFormatModules } from '../../src/format-modules.js';
import { foreignFormatByName } from '../../src/formats/registry.js';
import { isForeignSecretUri, readForeignSecret } from '../../src/keys/foreign-secret.js';

const folder = mkdtempSync(join(tmpdir(), 'keyturn-secret-'));
afterAll(() => rmSync(folder, { recursive: true }));

function file(name: string, content: string, mode = 0o600): string {
  const path = join(folder, name);
  writeFileSync(path, content);
  chmodSync(path, mode);
  return path;
}

const unavailable = (words: RegExp): unknown =>
  expect.objectContaining({ code: 'FOREIGN_SECRET_UNAVAILABLE', message: expect.stringMatching(words) as unknown });

describe('where a secret lies', () => {
  test('a variable, the file that its _FILE names, or a file; without the newline of an editor', async () => {
    const path = file('passphrase', 'correct horse\n');
    expect((await readForeignSecret('env:OLD', { OLD: 'from the variable' })).toString()).toBe('from the variable');
    expect((await readForeignSecret('env:OLD', { OLD_FILE: path })).toString()).toBe('correct horse');
    expect((await readForeignSecret(`file:${path}`, {})).toString()).toBe('correct horse');
  });

  test('what is not there, is readable to others or far too long is refused with the remedy', async () => {
    await expect(readForeignSecret('env:OLD', {})).rejects.toThrow(unavailable(/env:OLD .* is not set/));
    await expect(readForeignSecret(`file:${join(folder, 'none')}`, {})).rejects.toThrow(unavailable(/ENOENT/));
    await expect(readForeignSecret(`file:${file('open', 'x', 0o644)}`, {})).rejects.toThrow(unavailable(/chmod 600/));
    await expect(readForeignSecret(`file:${file('long', 'x'.repeat(5_000))}`, {})).rejects.toThrow(
      unavailable(/has 5000 bytes/),
    );
  });

  test.each(['', 'env:', 'env:NOT A NAME', 'file:', 'hunter2', 'vault:secret'])(
    'I7 "%s" is no place, and is not repeated in the error',
    async (uri) => {
      expect(isForeignSecretUri(uri)).toBe(false);
      const error: unknown = await readForeignSecret(uri, {}).catch((caught: unknown) => caught);
      expect(error).toMatchObject({
        code: 'CONFIG_INVALID',
        message: 'expected env:NAME or file:PATH for the secret of a foreign format',
      });
    },
  );
});

test('I7 a secret that is no key of its format is refused without being repeated', async () => {
  const open = createForeignOpener({ OLD: 'hunter2' });
  const column = { columnId: '', format: 'aes-gcm-hex', secretUri: 'env:OLD', move: 'adopting' } as const;
  const error: unknown = await open(column).catch((caught: unknown) => caught);
  expect(error).toMatchObject({ code: 'CONFIG_INVALID' });
  expect(String(error)).not.toContain('hunter2');
});

describe('formats of a user’s own', () => {
  const own = join(import.meta.dirname, '../support/formats/rot47.mjs');

  test('a module named twice is one format', async () => {
    await loadFormatModules({ KEYTURN_FORMATS: `${own},${own}` });
    expect(foreignFormatByName('rot47')?.name).toBe('rot47');
  });

  test('nothing is loaded where nothing is named', async () => {
    await expect(loadFormatModules({})).resolves.toBeUndefined();
  });

  test.each([
    ['nothing.mjs', undefined, /cannot be loaded/],
    ['empty.mjs', 'export const other = 1;', /has to export a ForeignFormat/],
    ['half.mjs', `export const format = { name: 'half', authenticates: true, storages: ['text'] };`, /has to export/],
    [
      'taken.mjs',
      `const f = () => undefined; export const format = { name: 'plaintext', authenticates: false, storages: ['text'], readKey: f, isValue: f, sqlIsValue: f, decrypt: f, encrypt: f, storedLength: f };`,
      /two formats are called "plaintext"/,
    ],
  ])('%s is refused', async (name, content, words) => {
    if (content !== undefined) file(name, content);
    await expect(loadFormatModules({ KEYTURN_FORMATS: join(folder, name) })).rejects.toThrow(
      expect.objectContaining({ code: 'CONFIG_INVALID', message: expect.stringMatching(words) as unknown }),
    );
  });
});
