// Where the cells of a slice are reencrypted: on this event loop, or in a thread, so that the cryptography of the next slice
// runs beside the statements of the last one on another core. The thread holds the same keys as this process.
import { Worker } from 'node:worker_threads';
import { KeyturnError, type ErrorCode } from '../errors.js';
import type { Keyring } from '../keys/keyring.js';
import type { Target } from '../rotation/target.js';
import type { CellRow } from '../store/cell-row.js';
import { startTreatment, type TreatedRows } from './treat-rows.js';

export interface SliceWork {
  readonly keyring: Keyring;
  readonly target: Target;
  readonly rows: readonly CellRow[];
  /** Per row, which columns are meant; undefined for all. */
  readonly visited: readonly (readonly boolean[])[] | undefined;
}

export interface SliceCrypto {
  treat(work: SliceWork): Promise<TreatedRows>;
  /** Safe twice. */
  close(): Promise<void>;
}

/** The event loop turns between so many rows, so that statements under way are not kept waiting. */
const rowsPerTurn = 32;

export function createInlineCrypto(): SliceCrypto {
  return {
    async treat({ keyring, target, rows, visited }) {
      const treatment = startTreatment(keyring, target, rows.length);
      for (const [at, row] of rows.entries()) {
        treatment.add(row, visited?.[at]);
        if (at % rowsPerTurn === rowsPerTurn - 1) await new Promise(setImmediate);
      }
      return treatment.finish();
    },
    close: async () => undefined,
  };
}

/** To the thread; `keyring` comes before the first slice of each generation, without wraps. */
export type ThreadRequest =
  | {
      readonly kind: 'keyring';
      readonly keyring: Pick<Keyring, 'id' | 'name' | 'cluster' | 'generation' | 'keys'>;
      readonly held: readonly { id: Keyring['held'][number]['id']; material: Keyring['held'][number]['material'] }[];
    }
  | {
      readonly kind: 'slice';
      readonly id: number;
      readonly keyringId: string;
      readonly target: Target;
      readonly rows: FlatRows;
      readonly visited: SliceWork['visited'];
    };

/** Rows one behind the other: key parts, tenant, values. One long array crosses to a thread far faster than many objects. */
export type FlatRows = readonly (string | null)[];

function flatten(rows: readonly CellRow[]): FlatRows {
  const flat: (string | null)[] = [];
  for (const { key, scope, values } of rows) flat.push(...key, scope, ...values);
  return flat;
}

export function unflatten(target: Target, flat: FlatRows): readonly CellRow[] {
  const keyParts = target.key.length;
  const stride = keyParts + 1 + target.columns.length;
  return Array.from({ length: flat.length / stride }, (_, row) => {
    const at = row * stride;
    return {
      key: flat.slice(at, at + keyParts) as string[],
      scope: flat[at + keyParts] ?? null,
      values: flat.slice(at + keyParts + 1, at + stride),
    };
  });
}

export type ThreadAnswer =
  | { readonly id: number; readonly treated: TreatedRows }
  | { readonly id: number; readonly failed: { readonly code: ErrorCode | undefined; readonly message: string } };

/** Keeps a worker small: a slice or two live here at a time. */
const threadLimits = { maxYoungGenerationSizeMb: 8, maxOldGenerationSizeMb: 256 };

/** One thread, started at the first slice; `entry` is the compiled slice-thread module. One that dies fails the slices it had; the next slice starts another. */
export function createThreadCrypto(entry: URL): SliceCrypto {
  const waiting = new Map<number, { resolve: (treated: TreatedRows) => void; reject: (error: Error) => void }>();
  const sent = new Map<string, Keyring>();
  let thread: Worker | undefined;
  let nextId = 0;

  function start(): Worker {
    sent.clear();
    const started = new Worker(entry, { resourceLimits: threadLimits });
    started.unref();
    started.on('message', (answer: ThreadAnswer) => {
      const waiter = waiting.get(answer.id);
      waiting.delete(answer.id);
      if ('treated' in answer) waiter?.resolve(answer.treated);
      else waiter?.reject(errorOf(answer.failed));
    });
    const onEnd = (): void => {
      thread = undefined;
      for (const waiter of waiting.values())
        waiter.reject(new KeyturnError('THREAD_ENDED', 'the thread that reencrypts ended; the batch is tried again'));
      waiting.clear();
    };
    started.on('error', onEnd);
    started.on('exit', onEnd);
    return started;
  }

  return {
    treat({ keyring, target, rows, visited }) {
      thread ??= start();
      if (sent.get(keyring.id) !== keyring) {
        sent.set(keyring.id, keyring);
        thread.postMessage(keyringMessage(keyring));
      }
      const id = nextId++;
      const answered = new Promise<TreatedRows>((resolve, reject) => waiting.set(id, { resolve, reject }));
      thread.postMessage({
        kind: 'slice',
        id,
        keyringId: keyring.id,
        target,
        rows: flatten(rows),
        visited,
      } satisfies ThreadRequest);
      return answered;
    },
    async close() {
      await thread?.terminate();
    },
  };
}

function keyringMessage(keyring: Keyring): ThreadRequest {
  const { id, name, cluster, generation, keys } = keyring;
  return {
    kind: 'keyring',
    keyring: { id, name, cluster, generation, keys: keys.map((key) => ({ ...key, wraps: [] })) },
    held: keyring.held.map((key) => ({ id: key.id, material: key.material })),
  };
}

function errorOf(failed: { readonly code: ErrorCode | undefined; readonly message: string }): Error {
  return failed.code === undefined ? new Error(failed.message) : new KeyturnError(failed.code, failed.message);
}
