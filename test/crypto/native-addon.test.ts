// The addon called by itself: every length that does not fit is refused before anything is read, and what it made is
// opened again before it counts.
import { randomBytes } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { Worker } from 'node:worker_threads';
import { nativeAddon, nativeOutcomes, type NativeKey } from '../../src/crypto/native-addon.js';
import { requireAddon } from '../support/crypto-paths.js';

const headerBytes = 12;
const nonceBytes = 24;
const lead = 16;
const fieldsBytes = 86;

/** Arguments of `reencrypt` for values of these plaintexts, as they should be. */
function batchOf(plaintexts: readonly Buffer[]) {
  const addon = requireAddon();
  const keys = [1, 2].map((byte) => addon.createKey(true, Buffer.alloc(32, byte))) as [NativeKey, NativeKey];
  const parts = plaintexts.map((plaintext, at) => {
    const fields = Buffer.alloc(fieldsBytes, at);
    const envelope = Buffer.concat([randomBytes(headerBytes + nonceBytes), Buffer.alloc(plaintext.length + 16)]);
    const bound = envelope.subarray(0, headerBytes + nonceBytes);
    addon.seal(keys[0], envelope, headerBytes, associatedDataOf(fields, bound), plaintext);
    return { envelope, fields };
  });
  return {
    from: keys[0],
    to: keys[1],
    header: Buffer.alloc(headerBytes, 7),
    lead,
    nonces: randomBytes(plaintexts.length * nonceBytes),
    values: Buffer.concat(parts.flatMap(({ envelope, fields }) => [envelope, fields])),
    lengths: Uint32Array.from(parts.flatMap(({ envelope, fields }) => [envelope.length, fields.length])),
    replacements: Buffer.alloc(
      parts.reduce((sum, { envelope }) => sum + envelope.length, 0),
      0xee,
    ),
    outcomes: new Uint8Array(plaintexts.length).fill(9),
  };
}

type Batch = ReturnType<typeof batchOf>;

function associatedDataOf(fields: Buffer, bound: Buffer): Buffer {
  return Buffer.concat([fields.subarray(0, lead), bound, fields.subarray(lead)]);
}

/** Buffers may lie over one memory. */
function reencrypt(batch: Omit<Batch, 'values' | 'replacements'> & { values: Buffer; replacements: Buffer }): void {
  requireAddon().reencrypt(
    batch.from,
    batch.to,
    batch.header,
    batch.lead,
    batch.nonces,
    batch.values,
    batch.lengths,
    batch.replacements,
    batch.outcomes,
  );
}

const plaintexts = [Buffer.alloc(0), Buffer.from('x'), Buffer.alloc(16, 1), randomBytes(1_000), randomBytes(1_048_576)];

describe.runIf(nativeAddon !== undefined)('the native addon', () => {
  test('a batch opens under the new key to what it held, from nothing to the largest plaintext', () => {
    const batch = batchOf(plaintexts);
    reencrypt(batch);
    expect([...batch.outcomes]).toEqual(plaintexts.map(() => nativeOutcomes.reencrypted));
    let at = 0;
    for (const [index, plaintext] of plaintexts.entries()) {
      const envelope = batch.replacements.subarray(at, at + headerBytes + nonceBytes + plaintext.length + 16);
      at += envelope.length;
      expect(envelope.subarray(0, headerBytes)).toEqual(batch.header);
      expect(envelope.subarray(headerBytes, headerBytes + nonceBytes)).toEqual(
        batch.nonces.subarray(index * nonceBytes, (index + 1) * nonceBytes),
      );
      const opened = Buffer.alloc(plaintext.length);
      const associatedData = associatedDataOf(
        Buffer.alloc(fieldsBytes, index),
        envelope.subarray(0, headerBytes + nonceBytes),
      );
      expect(requireAddon().unseal(batch.to, envelope, headerBytes, associatedData, opened)).toBe(true);
      expect(opened.equals(plaintext)).toBe(true);
    }
  });

  test('a value whose tag does not match leaves zeros, and its neighbours are reencrypted', () => {
    const batch = batchOf([Buffer.from('one'), Buffer.from('two'), Buffer.from('three')]);
    const second = (batch.lengths[0] ?? 0) + fieldsBytes;
    batch.values.writeUInt8(batch.values.readUInt8(second + 40) ^ 1, second + 40);
    reencrypt(batch);
    expect([...batch.outcomes]).toEqual([0, nativeOutcomes.authenticationFailed, 0]);
    const from = batch.lengths[0] ?? 0;
    expect(batch.replacements.subarray(from, from + (batch.lengths[2] ?? 0))).toEqual(
      Buffer.alloc(batch.lengths[2] ?? 0),
    );
  });

  test('what was damaged between sealing and opening again is not taken for reencrypted', () => {
    // The replacement lies over the fields that are authenticated with it, so that writing one changes the other.
    const batch = batchOf([
      Buffer.from('a plaintext that is longer than its fields are, so that they are written over'),
    ]);
    const memory = Buffer.alloc(batch.values.length + batch.replacements.length);
    const values = memory.subarray(0, batch.values.length).fill(batch.values);
    const replacements = memory.subarray(batch.lengths[0], (batch.lengths[0] ?? 0) + batch.replacements.length);
    reencrypt({ ...batch, values, replacements });
    expect([...batch.outcomes]).toEqual([nativeOutcomes.verificationFailed]);
    expect(replacements).toEqual(Buffer.alloc(replacements.length));
  });

  test('every table of lengths that does not fit its buffers exactly is refused, and so is every other odd argument', () => {
    const max = 0xffff_ffff;
    const wrong: Readonly<Record<string, (batch: Batch) => Partial<Record<keyof Batch, unknown>>>> = {
      'an envelope longer than all values': () => ({ lengths: Uint32Array.of(max, 86, 69, 86) }),
      'fields longer than all values': () => ({ lengths: Uint32Array.of(68, max, 69, 86) }),
      'lengths that overflow together': () => ({ lengths: Uint32Array.of(max, max, max, max) }),
      'an envelope shorter than header, nonce and tag': () => ({ lengths: Uint32Array.of(51, 103, 69, 86) }),
      'an envelope of nothing at all': () => ({ lengths: Uint32Array.of(0, 154, 69, 86) }),
      'fields shorter than the lead': () => ({ lengths: Uint32Array.of(139, 15, 69, 86) }),
      'the last byte left out': ({ lengths }) => ({ lengths: lengths.map((one, at) => (at === 3 ? one - 1 : one)) }),
      'one byte too many': ({ lengths }) => ({ lengths: lengths.map((one, at) => (at === 3 ? one + 1 : one)) }),
      'a length too few': ({ lengths }) => ({ lengths: lengths.subarray(1) }),
      'no lengths': () => ({ lengths: new Uint32Array(0) }),
      'lengths of another type': ({ lengths }) => ({ lengths: new Uint8Array(lengths) }),
      'values cut short': ({ values }) => ({ values: values.subarray(1) }),
      'no values': () => ({ values: Buffer.alloc(0) }),
      'values that are text': () => ({ values: 'values' }),
      'nonces cut short': ({ nonces }) => ({ nonces: nonces.subarray(1) }),
      'a nonce too many': ({ nonces }) => ({ nonces: Buffer.concat([nonces, nonces]) }),
      'replacements cut short': ({ replacements }) => ({ replacements: replacements.subarray(1) }),
      'replacements with room left': () => ({ replacements: Buffer.alloc(1_000) }),
      'outcomes for one value': () => ({ outcomes: new Uint8Array(1) }),
      'outcomes for three': () => ({ outcomes: new Uint8Array(3) }),
      'no outcomes but values': () => ({
        outcomes: new Uint8Array(0),
        lengths: new Uint32Array(0),
        nonces: Buffer.alloc(0),
      }),
      'a header that leaves no room for the tag': () => ({ header: Buffer.alloc(29) }),
      'a header as long as all values': ({ values }) => ({ header: Buffer.alloc(values.length) }),
      'a lead beyond the fields': () => ({ lead: 87 }),
      'a lead that is no number': () => ({ lead: '16' }),
      'a key that is none': () => ({ from: {} }),
      'a key that is a buffer': () => ({ to: Buffer.alloc(32) }),
      'no key': () => ({ to: undefined }),
    };
    for (const [what, change] of Object.entries(wrong)) {
      const batch = batchOf([Buffer.alloc(16, 1), Buffer.alloc(17, 2)]);
      expect(() => reencrypt({ ...batch, ...change(batch) } as Batch), `${what}`).toThrow(RangeError);
      expect([...batch.outcomes], `${what}`).toEqual([9, 9]);
    }
  });

  test('a detached buffer is an empty one, not memory of somebody else', () => {
    const batch = batchOf([Buffer.alloc(16, 1)]);
    const values = Buffer.from(Uint8Array.from(batch.values).buffer);
    structuredClone(values.buffer, { transfer: [values.buffer] });
    expect(() => reencrypt({ ...batch, values })).toThrow(RangeError);
  });

  test('a batch of nothing is reencrypted to nothing', () => {
    const batch = batchOf([]);
    reencrypt(batch);
    expect(batch.replacements).toHaveLength(0);
  });

  test('one sealed value is as long as nonce, plaintext and tag, at either end of its buffer, or it is refused', () => {
    const addon = requireAddon();
    const key = addon.createKey(false, Buffer.alloc(32, 1));
    const [associatedData, plaintext] = [Buffer.alloc(3), Buffer.alloc(5)];
    for (const [length, at] of [
      [32, 0],
      [34, 0],
      [33, 1],
      [35, 1],
      [33, 34],
      [33, 0xffff_ffff],
      [0, 0],
    ] as const) {
      const sealed = Buffer.alloc(length);
      expect(() => addon.seal(key, sealed, at, associatedData, plaintext), `${length}, ${at}`).toThrow(RangeError);
      expect(() => addon.unseal(key, sealed, at, associatedData, plaintext), `${length}, ${at}`).toThrow(RangeError);
    }
    const sealed = Buffer.alloc(40);
    addon.seal(key, sealed, 7, associatedData, plaintext);
    expect(sealed.subarray(0, 7)).toEqual(Buffer.alloc(7));
    expect(addon.unseal(key, sealed, 7, associatedData, Buffer.alloc(5))).toBe(true);
  });

  test('keys that are not 32 bytes and calls without arguments are refused', () => {
    const addon = requireAddon();
    for (const length of [0, 16, 24, 31, 33, 64])
      for (const isXaes of [true, false])
        expect(() => addon.createKey(isXaes, Buffer.alloc(length)), `${length}`).toThrow(RangeError);
    for (const name of ['createKey', 'seal', 'unseal', 'reencrypt'] as const) {
      const call: unknown = addon[name];
      expect(() => (call as () => void)(), `${name}`).toThrow(RangeError);
    }
    expect(() => addon.createKey(1 as unknown as boolean, Buffer.alloc(32))).toThrow(RangeError);
  });

  test('worker threads have ciphers of their own, and end while others work', async () => {
    const code = `
      const { parentPort, workerData } = require('node:worker_threads');
      const addon = require(workerData);
      const key = addon.createKey(true, Buffer.alloc(32, 1));
      const plaintext = Buffer.alloc(100, 2);
      const sealed = Buffer.alloc(140);
      for (let at = 0; at < 5000; at++) {
        sealed.writeUInt32BE(at);
        addon.seal(key, sealed, 0, plaintext, plaintext);
        if (!addon.unseal(key, sealed, 0, plaintext, Buffer.alloc(100))) throw new Error('does not open');
      }
      parentPort.postMessage(sealed.toString('hex'));`;
    const path = new URL('../../native/build/Release/keyturn_native.node', import.meta.url).pathname;
    const answers = await Promise.all(
      Array.from({ length: 4 }, async () => {
        const worker = new Worker(code, { eval: true, workerData: path });
        return await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
      }),
    );
    expect(new Set(answers).size).toBe(1);
  });
});
