// The row field: known bytes, what is refused, and that lengths keep neighbours apart.
import { describe, expect, test } from 'vitest';
import { encodeRowKey, type RowKeyTag } from '../../src/crypto/row-key.js';

describe('row keys', () => {
  test('each part is tag and text with their lengths', () => {
    expect(encodeRowKey([{ tag: 'int', text: '42' }]).toString('hex')).toBe('0003696e7400023432');
    expect(encodeRowKey([{ tag: 'text', text: 'ë' }]).toString('hex')).toBe('0004746578740002c3ab');
    expect(encodeRowKey([{ tag: 'bytes', text: '\\x' }]).toString('hex')).toBe('0005627974657300025c78');
  });

  test('parts follow each other in key order', () => {
    const [first, second] = [{ tag: 'int', text: '1' } as const, { tag: 'text', text: '' } as const];
    const joined = encodeRowKey([first, second]);
    expect(joined).toEqual(Buffer.concat([encodeRowKey([first]), encodeRowKey([second])]));
    expect(joined).not.toEqual(encodeRowKey([second, first]));
  });

  test.each<[RowKeyTag, string]>([
    ['int', '007'],
    ['int', '+7'],
    ['int', '-0'],
    ['int', ''],
    ['int', '1.0'],
    ['int', '1e3'],
    ['int', ' 1'],
    ['int', '1\n'],
    ['int', '٣'],
    ['uuid', '55555555-5555-4555-8555-55555555555A'],
    ['uuid', '{55555555-5555-4555-8555-555555555555}'],
    ['uuid', '55555555555545558555555555555555'],
    ['bytes', '\\xFF'],
    ['bytes', '\\xf'],
    ['bytes', '\\000'],
    ['bytes', 'ff'],
    ['text', 'a\ud800'],
  ])('%s %j is not what PostgreSQL prints and is refused', (tag, text) => {
    expect(() => encodeRowKey([{ tag, text }])).toThrow(
      expect.objectContaining({
        code: 'VALUE_INVALID',
        message: `a ${tag} key column must hold the text that PostgreSQL prints for it`,
      }),
    );
  });

  test('a key without columns is refused', () => {
    expect(() => encodeRowKey([])).toThrow(expect.objectContaining({ code: 'VALUE_INVALID' }));
  });

  test('the field fits 65 535 bytes and not one more, in one part or in several', () => {
    const overhead = 2 + 4 + 2;
    expect(encodeRowKey([{ tag: 'text', text: 'x'.repeat(65_535 - overhead) }])).toHaveLength(65_535);
    const half = 'x'.repeat(32_768);
    for (const parts of [
      [{ tag: 'text', text: 'x'.repeat(65_536 - overhead) } as const],
      [{ tag: 'text', text: 'ë'.repeat(32_768) } as const],
      [{ tag: 'text', text: half } as const, { tag: 'text', text: half } as const],
    ]) {
      expect(() => encodeRowKey(parts)).toThrow(expect.objectContaining({ code: 'VALUE_INVALID' }));
    }
  });
});
