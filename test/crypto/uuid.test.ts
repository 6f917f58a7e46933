// UUIDs as bytes, and tenants as UUIDs.
import { describe, expect, test } from 'vitest';
import { bytesToUuid, nilUuidBytes, tenantBytes, uuidToBytes } from '../../src/crypto/uuid.js';

const cluster = '00112233-4455-6677-8899-aabbccddeeff';

describe('UUID text and bytes', () => {
  test('bytes are those of the text, whatever its case and version', () => {
    expect(uuidToBytes('00112233-4455-6677-8899-AABBCCDDEEFF').toString('hex')).toBe(
      '00112233445566778899aabbccddeeff',
    );
    expect(uuidToBytes('ffffffff-ffff-ffff-ffff-ffffffffffff').toString('hex')).toBe('f'.repeat(32));
  });

  test('bytes print as lower-case text', () => {
    expect(bytesToUuid(Buffer.from('00112233445566778899AABBCCDDEEFF', 'hex'))).toBe(cluster);
  });

  test.each([
    '',
    '00112233445566778899aabbccddeeff',
    '{00112233-4455-6677-8899-aabbccddeeff}',
    'urn:uuid:00112233-4455-6677-8899-aabbccddeeff',
    '00112233-4455-6677-8899-aabbccddeefg',
    '00112233-4455-6677-8899-aabbccddeeff\n',
    '0011223344-55-6677-8899-aabbccddeeff',
  ])('%j is refused as a UUID without being echoed', (text) => {
    expect(() => uuidToBytes(text)).toThrow(
      expect.objectContaining({
        code: 'VALUE_INVALID',
        message: `expected a UUID in 8-4-4-4-12 form, got ${text.length} characters`,
      }),
    );
  });

  test('only 16 bytes print as a UUID', () => {
    for (const length of [0, 15, 17]) {
      expect(() => bytesToUuid(Buffer.alloc(length))).toThrow(
        expect.objectContaining({ code: 'VALUE_INVALID', message: `expected the 16 bytes of a UUID, got ${length}` }),
      );
    }
  });
});

describe('tenants', () => {
  test('no tenant is the nil UUID', () => {
    expect(tenantBytes(cluster, null)).toEqual(Buffer.alloc(16));
    expect(nilUuidBytes).toEqual(Buffer.alloc(16));
  });

  test('a tenant that is a UUID is itself in any case', () => {
    const lower = tenantBytes(cluster, '22222222-aaaa-4222-8222-222222222222');
    expect(lower.toString('hex')).toBe('22222222aaaa42228222222222222222');
    expect(tenantBytes(cluster, '22222222-AAAA-4222-8222-222222222222')).toEqual(lower);
  });

  test('any other tenant is its UUIDv5 in the namespace of the cluster', () => {
    // The example of RFC 9562, appendix A.4: www.example.com in the DNS namespace.
    const dns = '6ba7b810-9dad-11d1-80b4-00c04fd430c8';
    expect(bytesToUuid(tenantBytes(dns, 'www.example.com'))).toBe('2ed6657d-e927-568b-95e1-2665a8aea6a2');
  });

  test('one name in two clusters is two tenants, and an empty name is not "no tenant"', () => {
    expect(tenantBytes(cluster, 'acme')).not.toEqual(tenantBytes('00112233-4455-6677-8899-aabbccddeefe', 'acme'));
    expect(tenantBytes(cluster, '')).not.toEqual(nilUuidBytes);
    expect(tenantBytes(cluster, 'Acme')).not.toEqual(tenantBytes(cluster, 'acme'));
  });

  test('a tenant with half a surrogate pair is refused', () => {
    expect(() => tenantBytes(cluster, 'a\ud800')).toThrow(expect.objectContaining({ code: 'VALUE_INVALID' }));
  });
});
