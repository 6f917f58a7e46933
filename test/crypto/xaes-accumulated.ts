// The accumulated case of the XAES specification: inputs drawn from one SHAKE-128 stream, outputs hashed by another.
import { createHash } from 'node:crypto';
import type { CryptoPath } from '../support/crypto-paths.js';

/** Mean bytes drawn per round: key 32, nonce 24, two length bytes, two texts of 127.5 on average. */
const meanBytesPerRound = 313;
const margin = 500_000; // far beyond the spread of a million rounds; a short stream would throw

/** First 32 bytes of SHAKE-128 over all outputs, as hexadecimal; every value is also decrypted again. */
export function accumulatedXaesHash({ openAead }: CryptoPath, rounds: number): string {
  const stream = createHash('shake128', { outputLength: rounds * meanBytesPerRound + margin }).digest();
  const outputs = createHash('shake128', { outputLength: 32 });
  let at = 0;
  const draw = (bytes: number): Buffer => {
    at += bytes;
    if (at > stream.length) throw new Error('the random stream is too short for these rounds');
    return stream.subarray(at - bytes, at);
  };
  for (let round = 0; round < rounds; round++) {
    const aead = openAead('xaes-256-gcm', draw(32));
    const nonce = draw(24);
    const plaintext = draw(draw(1).readUInt8());
    const associatedData = draw(draw(1).readUInt8());
    const encrypted = aead.encrypt(nonce, associatedData, plaintext);
    if (aead.decrypt(nonce, associatedData, encrypted)?.equals(plaintext) !== true) {
      throw new Error(`round ${round} does not decrypt`);
    }
    outputs.update(encrypted.ciphertext).update(encrypted.tag);
  }
  return outputs.digest('hex');
}
