// The value algorithms of format v1 (docs/format.md). A data key serves exactly one of them.

export type AlgorithmName = 'aes-256-gcm' | 'xaes-256-gcm';
export type AlgorithmId = 1 | 2;

export const defaultAlgorithm: AlgorithmName = 'xaes-256-gcm';

export const algorithmIds: Readonly<Record<AlgorithmName, AlgorithmId>> = { 'aes-256-gcm': 1, 'xaes-256-gcm': 2 };

export const algorithmNames = Object.keys(algorithmIds) as readonly AlgorithmName[];

/**
 * How often one key may encrypt, over all processes together. Random 96-bit nonces of AES-256-GCM may collide: NIST allows
 * 2^32, a tenth is kept back. XAES-256-GCM has no bound that could be reached. The database holds the same figure.
 */
export const encryptionLimits: Readonly<
  Partial<Record<AlgorithmName, { readonly warn: number; readonly refuse: number }>>
> = {
  'aes-256-gcm': { warn: 2_147_483_648, refuse: 3_865_470_566 },
};

/** Undefined for ids that format v1 reserves or does not know. */
export function algorithmOfId(id: number): AlgorithmName | undefined {
  return algorithmNames.find((name) => algorithmIds[name] === id);
}
