// Domain separation: every derivation and every associated data begins with a label of its own, so that bytes made for
// one purpose never authenticate for another.

const prefix = 'keyturn/v1/';

export type Label = 'wrap' | 'kcv' | 'kek-fingerprint' | 'dek-commit' | 'aad' | 'token' | 'audit' | 'audit-seal';

/** The label as HKDF takes it: without the closing zero byte. */
export function labelText(label: Label): string {
  return prefix + label;
}

/** The label as it opens a byte string: the closing zero byte keeps one label from being the start of another. */
export function labelBytes(label: Label): Buffer {
  return Buffer.from(`${prefix}${label}\0`, 'latin1');
}
