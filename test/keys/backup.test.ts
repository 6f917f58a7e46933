// The content of a backup: one spelling, one hash, and nothing read that was not written by this format.
import { describe, expect, test } from 'vitest';
import { Secret } from '../../src/crypto/secret.js';
import {
  canonicalJson,
  checkKeyTables,
  decodeBackup,
  encodeBackup,
  type BackupContents,
} from '../../src/keys/backup.js';
import {
  demandRecipient,
  demandStrongPassphrase,
  generatePassphrase,
  lockBackup,
  unlockBackup,
} from '../../src/keys/backup-lock.js';

const contents: BackupContents = {
  cluster: { id: '0b9c1f0e-6d1c-4f5a-9a51-2f6b7c8d9e01', created_at: '2026-11-22T10:00:00.123456+00:00' },
  schema: 1,
  takenAt: '2026-11-22T12:00:00+00:00',
  auditHead: { n: 12, hash: `\\x${'ab'.repeat(32)}` },
  rootKeys: [],
  rootKeyBytes: [],
  keyrings: [],
  dataKeys: [],
  keyUsage: [],
  targets: [],
  lastIds: { key: 3, auditKey: 0, rootKey: 1 },
};

function withText(change: (text: string) => string): Buffer {
  return Buffer.from(change(encodeBackup(contents).toString('utf8')), 'utf8');
}

describe('the content of a backup', () => {
  test('is what was encoded, whatever the order of names', () => {
    expect(decodeBackup(encodeBackup(contents))).toEqual(contents);
    const reversed = Object.fromEntries(Object.entries(contents).toReversed()) as unknown as BackupContents;
    expect(encodeBackup(reversed)).toEqual(encodeBackup(contents));
  });

  test.each([
    ['no JSON', (text: string) => text.slice(1)],
    ['another format', (text: string) => text.replace('keyturn-backup', 'something-else')],
    ['a changed number', (text: string) => text.replace('"key":3', '"key":4')],
    ['white space', (text: string) => text.replace(',', ', ')],
    ['a field more', (text: string) => text.replace('"schema"', '"more":1,"schema"')],
    ['a field less', (text: string) => text.replace('"schema":1,', '')],
  ])('with %s is refused as damaged', (_, change) => {
    expect(() => decodeBackup(withText(change))).toThrow(expect.objectContaining({ code: 'BACKUP_DAMAGED' }));
  });

  test('of a later version is refused with the way out', () => {
    expect(() => decodeBackup(withText((text) => text.replace('"version":1', '"version":2')))).toThrow(
      expect.objectContaining({ code: 'BACKUP_REFUSED' }),
    );
  });

  test('takes no rows that the format cannot carry', () => {
    expect(() => checkKeyTables({ ...contents, dataKeys: [{ id: 0 }] })).toThrow(
      expect.objectContaining({ code: 'BACKUP_DAMAGED' }),
    );
  });

  test('holds whole numbers alone, so that equal contents have equal bytes', () => {
    expect(canonicalJson({ b: [1, null, 'x'], a: { d: true, c: '"' } })).toBe(
      '{"a":{"c":"\\"","d":true},"b":[1,null,"x"]}',
    );
    expect(() => canonicalJson(1.5)).toThrow(expect.objectContaining({ code: 'VALUE_INVALID' }));
  });
});

describe('the lock of a backup', () => {
  test('opens with the passphrase typed in another Unicode form', async () => {
    const typed = (text: string) => ({ kind: 'passphrase', passphrase: new Secret(text) }) as const;
    const locked = await lockBackup(Buffer.from('content'), {
      ...typed('caf\u00e9-caf\u00e9-caf\u00e9-caf\u00e9'),
      workFactor: 5,
    });
    const opened = await unlockBackup(locked, typed('cafe\u0301-cafe\u0301-cafe\u0301-cafe\u0301'));
    expect(opened.toString()).toBe('content');
  });

  test('takes a passphrase of 20 characters or 6 words, and none that is shorter or repeats itself', () => {
    for (const good of ['correct horse battery', 'one two three four five six', generatePassphrase()])
      expect(() => demandStrongPassphrase(new Secret(good))).not.toThrow();
    for (const bad of ['short', 'nineteen-characters', 'aaaaaaaaaaaaaaaaaaaaaaaaa', 'one one one one one'])
      expect(() => demandStrongPassphrase(new Secret(bad))).toThrow(expect.objectContaining({ code: 'USAGE' }));
  });

  test('makes a different passphrase each time, of 30 characters', () => {
    const made = new Set(Array.from({ length: 100 }, generatePassphrase));
    expect(made.size).toBe(100);
    for (const one of made) expect(one).toMatch(/^([2-9a-z]{5}-){5}[2-9a-z]{5}$/);
  });

  test('refuses a secret key, and anything else, as a recipient', () => {
    expect(() => demandRecipient('AGE-SECRET-KEY-1QQQ')).toThrow(/is a secret one/);
    for (const other of ['age1', 'ssh-ed25519 AAAA', `age1${'q'.repeat(59)}`])
      expect(() => demandRecipient(other)).toThrow(expect.objectContaining({ code: 'USAGE' }));
  });

  test('refuses an identity file without identities', async () => {
    const locked = await lockBackup(Buffer.from('content'), {
      kind: 'passphrase',
      passphrase: new Secret('a-b-c-d-e-f'),
      workFactor: 5,
    });
    for (const file of ['# nothing\n', 'AGE-SECRET-KEY-1NO\n'])
      await expect(unlockBackup(locked, { kind: 'identities', file: new Secret(file) })).rejects.toMatchObject({
        code: 'USAGE',
      });
  });
});
