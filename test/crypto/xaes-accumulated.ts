// One value under XAES through the functions that values take, and the accumulated case of the specification: inputs drawn
// from one SHAKE-128 stream, outputs hashed by another.
import { createHash, createSecretKey } from 'node:crypto';
import { decryptAesGcm, encryptAesGcm, type GcmOutput, type GcmUse } from '../../src/crypto/aes-gcm.js';
import { createXaesKey, type XaesKey } from '../../src/crypto/xaes-gcm.js';

export function encryptXaesGcm(key: XaesKey, nonce: Buffer, associatedData: Buffer, plaintext: Buffer): GcmOutput {
  const use = useOf(key, nonce);
  return encryptAesGcm(use.key, use.nonce, associatedData, plaintext);
}

/** Undefined when the tag does not match. */
export function decryptXaesGcm(
  key: XaesKey,
  nonce: Buffer,
  associatedData: Buffer,
  encrypted: GcmOutput,
): Buffer | undefined {
  const use = useOf(key, nonce);
  return decryptAesGcm(use.key, use.nonce, associatedData, encrypted);
}

function useOf(key: XaesKey, nonce: Buffer): GcmUse {
  const [use] = key.derive([nonce]).uses;
  if (use === undefined) throw new Error('one nonce, no subkey');
  return use;
}

/** Mean bytes drawn per round: key 32, nonce 24, two length bytes, two texts of 127.5 on average. */
const meanBytesPerRound = 313;
const margin = 500_000; // far beyond the spread of a million rounds; a short stream would throw

/** First 32 bytes of SHAKE-128 over all outputs, as hexadecimal; every value is also decrypted again. */
export function accumulatedXaesHash(rounds: number): string {
  const stream = createHash('shake128', { outputLength: rounds * meanBytesPerRound + margin }).digest();
  const outputs = createHash('shake128', { outputLength: 32 });
  let at = 0;
  const draw = (bytes: number): Buffer => {
    at += bytes;
    if (at > stream.length) throw new Error('the random stream is too short for these rounds');
    return stream.subarray(at - bytes, at);
  };
  for (let round = 0; round < rounds; round++) {
    const key = createXaesKey(createSecretKey(draw(32)));
    const nonce = draw(24);
    const plaintext = draw(draw(1).readUInt8());
    const associatedData = draw(draw(1).readUInt8());
    const encrypted = encryptXaesGcm(key, nonce, associatedData, plaintext);
    if (decryptXaesGcm(key, nonce, associatedData, encrypted)?.equals(plaintext) !== true) {
      throw new Error(`round ${round} does not decrypt`);
    }
    outputs.update(encrypted.ciphertext).update(encrypted.tag);
  }
  return outputs.digest('hex');
}
