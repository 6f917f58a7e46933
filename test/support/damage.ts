// What can happen to a stored envelope, one thing at a time.

const prefix = 'kt1.';

function edited(text: string, edit: (bytes: Buffer) => Buffer): string {
  return prefix + edit(Buffer.from(text.slice(prefix.length), 'base64url')).toString('base64url');
}

export const damage = {
  bitFlipped: (text: string): string =>
    edited(text, (bytes) => {
      bytes.writeUInt8(bytes.readUInt8(bytes.length - 1) ^ 1, bytes.length - 1);
      return bytes;
    }),
  /** To less than header, nonce and tag take. */
  cut: (text: string): string => edited(text, (bytes) => bytes.subarray(0, 40)),
  /** Another algorithm than its key has. */
  otherAlgorithm: (text: string): string =>
    edited(text, (bytes) => {
      bytes.writeUInt8(bytes[3] === 1 ? 2 : 1, 3);
      return bytes;
    }),
  namingKey: (text: string, keyId: number): string =>
    edited(text, (bytes) => {
      bytes.writeUInt32BE(keyId, 4);
      return bytes;
    }),
  /** As after a restore that put another key under the same id. */
  otherKeyCheck: (text: string): string =>
    edited(text, (bytes) => {
      bytes.writeUInt8(bytes.readUInt8(8) ^ 1, 8);
      return bytes;
    }),
};
