// backup verify: whether a backup would bring back what is stored now. Its keys are opened as after a disaster, with the root
// keys that it carries where it carries any, and some values of every column and key are decrypted with them and no others.
import { openSamples, type Sample } from '../engine/open-samples.js';
import { KeyturnError } from '../errors.js';
import { damaged, type BackupContents } from '../keys/backup.js';
import type { BackupOpener } from '../keys/backup-lock.js';
import { createKeyring, keyTitle } from '../keys/keyring.js';
import { refuseOtherCluster } from '../keys/merge-backup.js';
import { matchRoots, type HeldRoots } from '../keys/open-keyring.js';
import { targetTitle, type Target } from '../rotation/target.js';
import { readOnlySnapshot } from '../store/database.js';
import { getClusterId, getKeyring } from '../store/keys.js';
import { listTargets } from '../store/registry.js';
import { filesOf, type ControlContext } from './context.js';
import {
  knownRootsOf,
  openBackupFile,
  openContents,
  rootsInFile,
  rootsOfBackup,
  type OpenedContents,
} from './open-backup.js';

interface ValueCounts {
  readonly cells: number;
  readonly values_tried: number;
  readonly values_opened: number;
}

export interface BackupVerification {
  readonly cluster: string;
  readonly taken_at: string;
  /** Whether the file opened its keys alone; else a root key at hand did. */
  readonly has_root_keys: boolean;
  /** Every data key of values in the backup, with the values that name it. */
  readonly keys: readonly (ValueCounts & {
    readonly key_id: number;
    /** `customers v3 (id 17)` */
    readonly key: string;
    readonly state: string;
    /** False where no root key was there that opens it. */
    readonly is_opened: boolean;
  })[];
  /** The same counts by column. */
  readonly samples: readonly (ValueCounts & {
    readonly target: string;
    readonly field: string;
    readonly key_id: number;
  })[];
  /** Keys that values name and the backup lacks. */
  readonly missing_keys: readonly { readonly key_id: number; readonly cells: number }[];
  /** Columns that the backup does not know: their values are bound to ids that a restore would not bring back. */
  readonly missing_columns: readonly string[];
  readonly failures: readonly { target: string; field: string; cause: string; key_id: number; values: number }[];
  /** Values of a foreign format, and what is no envelope: no key of a backup has to do with them. */
  readonly cells_without_key: number;
}

/**
 * Writes nothing. Throws BACKUP_REFUSED for a backup of another cluster, BACKUP_DAMAGED, MASTER_KEY_MISMATCH,
 * ROOT_KEY_UNAVAILABLE where no root key is there to try.
 */
export async function verifyBackup(
  context: ControlContext,
  { input, opener }: { readonly input: string; readonly opener: BackupOpener },
): Promise<BackupVerification> {
  const { database } = context;
  const { contents } = await openBackupFile(input, opener, filesOf(context));
  refuseOtherCluster(await getClusterId(database), contents.cluster.id);
  const opened = await openContents(contents, await rootsFor(context, contents));
  await context.loadFormats();
  const samples: TargetSample[] = [];
  for (const target of await listTargets(database)) {
    context.onProgress(`decrypting some values of ${targetTitle(target)}`);
    const keyring = createKeyring(await getKeyring(database, target.keyringName), opened.keys);
    const found = await database.transaction(
      (client) => openSamples(client, target, keyring),
      `${readOnlySnapshot}; SET LOCAL row_security = off`,
    );
    samples.push(...found.map((sample) => ({ ...sample, target })));
  }
  return reportOf(contents, opened, samples);
}

type TargetSample = Sample & { readonly target: Target };
type KeySample = TargetSample & { readonly keyId: number };

/** A file that carries root keys is to open by itself; what this machine holds would only hide that it does not. */
async function rootsFor(context: ControlContext, contents: BackupContents): Promise<HeldRoots> {
  if (contents.rootKeyBytes.length > 0) {
    const carried = matchRoots(rootsInFile(contents), knownRootsOf(contents));
    if (carried.size > 0) return carried;
    throw damaged('its data keys are wrapped under other root keys than those it carries');
  }
  const held = await rootsOfBackup(context, contents);
  if (held.size > 0) return held;
  throw new KeyturnError(
    'ROOT_KEY_UNAVAILABLE',
    'the backup carries no root key and none of its cluster is at hand, so its keys cannot be tried; give the root key',
  );
}

function reportOf(
  contents: BackupContents,
  opened: OpenedContents,
  samples: readonly TargetSample[],
): BackupVerification {
  const named = samples.filter((sample): sample is KeySample => typeof sample.keyId === 'number');
  const held = contents.dataKeys.filter(({ purpose, state }) => purpose === 1 && state !== 'destroyed');
  const known = new Set(contents.targets.flatMap(({ columns }) => columns.map(({ id }) => id)));
  const ofKey = (id: number): readonly KeySample[] => named.filter(({ keyId }) => keyId === id);
  const missing = new Set(named.map(({ keyId }) => keyId).filter((keyId) => !held.some(({ id }) => id === keyId)));
  return {
    cluster: contents.cluster.id,
    taken_at: new Date(contents.takenAt).toISOString(),
    has_root_keys: contents.rootKeyBytes.length > 0,
    keys: held.map((key) => ({
      key_id: key.id,
      key: keyTitle(contents.keyrings.find(({ id }) => id === key.keyring_id)?.name ?? '', key),
      state: key.state,
      is_opened: opened.keys.has(key.id),
      ...countsOf(ofKey(key.id)),
    })),
    samples: named.map((sample) => ({ ...placeOf(sample), key_id: sample.keyId, ...countsOf([sample]) })),
    missing_keys: [...missing].map((id) => ({ key_id: id, cells: countsOf(ofKey(id)).cells })),
    missing_columns: [
      ...new Set(samples.filter(({ column }) => !known.has(column.id)).map((sample) => titleOf(sample))),
    ],
    failures: named.flatMap((sample) =>
      [...new Set(sample.causes)].map((cause) => ({
        ...placeOf(sample),
        cause,
        key_id: sample.keyId,
        values: sample.causes.filter((other) => other === cause).length,
      })),
    ),
    cells_without_key: countsOf(samples.filter(({ keyId }) => typeof keyId !== 'number')).cells,
  };
}

function countsOf(samples: readonly Sample[]): ValueCounts {
  const sum = (count: (sample: Sample) => number): number => samples.reduce((total, one) => total + count(one), 0);
  return {
    cells: sum(({ cells }) => cells),
    values_tried: sum(({ tried }) => tried),
    values_opened: sum(({ tried, causes }) => tried - causes.length),
  };
}

function placeOf({ target, column }: TargetSample): { target: string; field: string } {
  return { target: targetTitle(target), field: column.name };
}

function keysWords(ids: readonly number[]): string {
  return `${ids.length === 1 ? 'key' : 'keys'} ${ids.join(', ')}`;
}

function titleOf({ target, column }: TargetSample): string {
  return `${targetTitle(target)}.${column.name}`;
}

/**
 * Throws BACKUP_INCOMPLETE where values would be lost with this backup, ROOT_KEY_UNAVAILABLE where that of some could not be
 * tried.
 */
export function refuseUnlessOpened(report: BackupVerification): void {
  const { missing_keys: keys, missing_columns: columns, failures } = report;
  const failed = failures.reduce((sum, { values }) => sum + values, 0);
  const lacks = [
    keys.length > 0 ? `values name ${keysWords(keys.map(({ key_id: id }) => id))}, which it lacks` : '',
    columns.length > 0 ? `it does not know ${columns.join(', ')}, to whose ids values are bound` : '',
    failed > 0 ? `${failed} of the values that were tried did not open` : '',
  ].filter((part) => part !== '');
  if (lacks.length > 0)
    throw new KeyturnError(
      'BACKUP_INCOMPLETE',
      `the backup does not open what is stored now: ${lacks.join('; ')}; take another one with keyturn backup create, and look for values that no key opens with keyturn verify --deep`,
    );
  const untried = report.keys.filter(({ is_opened: isOpened, cells }) => !isOpened && cells > 0);
  if (untried.length > 0)
    throw new KeyturnError(
      'ROOT_KEY_UNAVAILABLE',
      `values name ${keysWords(untried.map(({ key_id: id }) => id))}, and no root key at hand opens that in the backup, so nothing was proved of it; give the root key`,
    );
}
