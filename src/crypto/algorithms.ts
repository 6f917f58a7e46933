// The value algorithms of format v1 (docs/format.md). A data key serves exactly one of them.

export type AlgorithmName = 'aes-256-gcm' | 'xaes-256-gcm';
export type AlgorithmId = 1 | 2;

export const defaultAlgorithm: AlgorithmName = 'xaes-256-gcm';

export const algorithmIds: Readonly<Record<AlgorithmName, AlgorithmId>> = { 'aes-256-gcm': 1, 'xaes-256-gcm': 2 };

export const algorithmNames = Object.keys(algorithmIds) as readonly AlgorithmName[];

/** Undefined for ids that format v1 reserves or does not know. */
export function algorithmOfId(id: number): AlgorithmName | undefined {
  return algorithmNames.find((name) => algorithmIds[name] === id);
}
