// The thread that reencrypts slices: receives keyrings and rows, answers with outcomes and packed arrays, whose memory is
// handed over instead of copied.
import { parentPort } from 'node:worker_threads';
import { createValueKey } from '../crypto/data-key.js';
import type { KeyId, ValueKey } from '../crypto/value-key.js';
import { KeyturnError } from '../errors.js';
import { createKeyring, type Keyring } from '../keys/keyring.js';
import { unflatten, type ThreadAnswer, type ThreadRequest } from './slice-crypto.js';
import { startTreatment, type TreatedRows } from './treat-rows.js';

const keyrings = new Map<string, Keyring>();

function openKeyring({ keyring, held }: Extract<ThreadRequest, { kind: 'keyring' }>): void {
  const opened = new Map<KeyId, ValueKey>();
  for (const { id, material } of held) {
    const row = keyring.keys.find((key) => key.id === id);
    if (row === undefined || typeof id !== 'number') continue;
    opened.set(
      id,
      createValueKey(
        { id, algorithm: row.algorithm, purpose: 1, cluster: keyring.cluster, scope: keyring.id },
        material,
      ),
    );
  }
  keyrings.set(keyring.id, createKeyring(keyring, opened));
}

function treat(request: Extract<ThreadRequest, { kind: 'slice' }>): ThreadAnswer {
  try {
    const keyring = keyrings.get(request.keyringId);
    if (keyring === undefined) throw new KeyturnError('KEY_NOT_HELD', 'the thread was given rows before their keyring');
    const rows = unflatten(request.target, request.rows);
    const treatment = startTreatment(keyring, request.target, rows.length);
    for (const [at, row] of rows.entries()) treatment.add(row, request.visited?.[at]);
    return { id: request.id, treated: treatment.finish() };
  } catch (error) {
    // Of a bug only its class: its message may hold values (I7).
    const failed =
      error instanceof KeyturnError
        ? { code: error.code, message: error.message }
        : { code: undefined, message: error instanceof Error ? error.constructor.name : 'unknown' };
    return { id: request.id, failed };
  }
}

function buffersOf(treated: TreatedRows): ArrayBuffer[] {
  const { keys, columns } = treated.replacements;
  const packed = [
    ...keys,
    ...columns.flatMap((column) => (column === undefined ? [] : [column.read, column.replacement])),
  ];
  return [...new Set([...packed, treated.codes].map((bytes) => bytes.buffer))].filter(
    (buffer) => buffer instanceof ArrayBuffer,
  );
}

parentPort?.on('message', (request: ThreadRequest) => {
  if (request.kind === 'keyring') {
    openKeyring(request);
    return;
  }
  const answer = treat(request);
  parentPort?.postMessage(answer, 'treated' in answer ? buffersOf(answer.treated) : []);
});
