import { createSecretKey } from 'node:crypto';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { chainStart, encodeRecord, linkOf, sealOf, type ChainedRecord } from '../../src/crypto/audit-chain.js';

const int64 = fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n });
const text = fc.oneof(fc.string({ unit: 'grapheme' }), fc.constantFrom('', '\u0000', '\u0001', 'a', 'key 1'));
const optional = fc.option(text, { nil: undefined });
const records: fc.Arbitrary<ChainedRecord> = fc.record({
  id: int64,
  atMicros: int64,
  actor: text,
  action: text,
  object: text,
  reason: optional,
  before: optional,
  after: optional,
});

const sample: ChainedRecord = {
  id: 7n,
  atMicros: 1_767_225_600_000_001n,
  actor: 'owner',
  action: 'key.activate',
  object: 'key 2',
  reason: 'quarterly',
  before: '{"state":"staged"}',
  after: '{"state":"active"}',
};

test('no two records encode alike', () => {
  fc.assert(
    fc.property(records, records, (one, other) => {
      const isSame = Object.keys(one).every(
        (name) => one[name as keyof ChainedRecord] === other[name as keyof ChainedRecord],
      );
      expect(encodeRecord(one).equals(encodeRecord(other))).toBe(isSame);
    }),
    { numRuns: 500 },
  );
});

test('a record that differs in one field alone encodes otherwise', () => {
  fc.assert(
    fc.property(records, records, (one, other) => {
      for (const name of Object.keys(one) as (keyof ChainedRecord)[]) {
        if (one[name] === other[name]) continue;
        expect(encodeRecord({ ...one, [name]: other[name] }).equals(encodeRecord(one))).toBe(false);
      }
    }),
    { numRuns: 300 },
  );
});

test('a character that moves from one field to the next, and absent in place of empty, change the bytes', () => {
  const bytes = encodeRecord(sample);
  expect(encodeRecord({ ...sample, actor: 'ownerk', action: 'ey.activate' }).equals(bytes)).toBe(false);
  expect(encodeRecord({ ...sample, reason: '' }).equals(encodeRecord({ ...sample, reason: undefined }))).toBe(false);
  expect(
    encodeRecord({ ...sample, before: undefined }).equals(
      encodeRecord({ ...sample, before: sample.after, after: undefined }),
    ),
  ).toBe(false);
});

test('a link depends on the record, its number and everything before it', () => {
  const links = [
    linkOf(1n, chainStart, sample),
    linkOf(2n, chainStart, sample),
    linkOf(1n, Buffer.alloc(32, 1), sample),
    linkOf(1n, chainStart, { ...sample, id: 8n }),
  ].map((link) => link.toString('hex'));
  expect(new Set(links).size).toBe(links.length);
});

test('the known answer of docs/audit.md', () => {
  expect(linkOf(1n, chainStart, sample).toString('hex')).toBe(
    'e7eec08827aa88921d1106be53547a8a19e3a456b5d9b93b28a0051677989500',
  );
  const key = createSecretKey(Buffer.from(Array.from({ length: 32 }, (_, at) => at)));
  const seal = { n: 1n, hash: linkOf(1n, chainStart, sample), sealedAtMicros: 1_767_225_600_000_002n };
  expect(sealOf(key, seal).toString('hex')).toBe('7e871d3a58dad81aec406bd9e77345844fbdbb22649f0e12e60bd35a8f7ddf0a');
});
