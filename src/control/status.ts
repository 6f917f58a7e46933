// status: keyrings, coverage as the last scans saw it, members, runs, queue, and the next safe command. Reads only; needs the
// database alone.
import { encryptionLimits } from '../crypto/algorithms.js';
import { listFenceTroubles, type FenceTrouble } from '../engine/fence.js';
import { lookForNonEnvelopes, type NonEnvelopes } from '../engine/non-envelopes.js';
import { isKeyturnError } from '../errors.js';
import { keyTitle } from '../keys/keyring.js';
import type { StoredKeyring } from '../keys/key-store.js';
import { findLaggards, memberTitle } from '../rotation/convergence.js';
import { isOpen } from '../rotation/schedule.js';
import { findLastBackup, listUnbackedKeys } from '../store/backups.js';
import { findStagedOrder, getKeyring, listKeyringNames } from '../store/keys.js';
import { findLeader } from '../store/leadership.js';
import { listExpectedMembers, listMembers, type MemberRow } from '../store/members.js';
import { findQueueRecord } from '../store/queue-record.js';
import { listRegistered, listTargets } from '../store/registry.js';
import { countUnresolved } from '../store/quarantine.js';
import { countReserved } from '../store/usage.js';
import { findRunToward, listUnfinishedRuns, sumRun, type Run } from '../store/runs.js';
import type { ControlContext } from './context.js';
import { listRoots } from '../store/roots.js';
import { commandAfterLeak } from './root-status.js';
import { listPendingDestructions, type DestructionReport } from './destroy-key.js';
import { nextCommand, nothingToDo } from './next-command.js';
import { findRunners, listRuns, type RunReport } from './runs.js';
import { findScheduleReport, type ScheduleReport } from './schedules.js';
import { readPaceReport, type PaceReport } from './pace.js';
import { lazyStatusOf, type LazyStatus } from './lazy-upgrades.js';

export interface KeyringStatus {
  readonly keyring: string;
  readonly generation: number;
  readonly active_key: string | null;
  readonly active_key_age_days: number | null;
  /** Days left of the cryptoperiod; negative once it is over. */
  readonly cryptoperiod_left_days: number | null;
  /** Reserved under the active key so far, by all processes: never too low. */
  readonly encryptions: number | null;
  /** What the active key's algorithm allows; null where that cannot be reached. */
  readonly encryption_limit: number | null;
  /** So many that it is time to rotate. */
  readonly encryptions_near_limit: boolean;
  readonly staged_key: string | null;
  /** Live or expected members that do not hold the staged key yet. */
  readonly staged_key_behind: readonly string[];
  readonly decrypt_only_keys: readonly string[];
  readonly retired_keys: readonly string[];
  /** Keys that wait for their destruction. */
  readonly pending_destructions: readonly DestructionReport[];
  readonly targets: number;
  readonly laggards: readonly string[];
  /** State of the newest run toward the active key. */
  readonly last_run: { readonly run_id: number; readonly state: string; readonly verified_at: string | null } | null;
  /** Cells that failed and are not resolved. */
  readonly cells_in_quarantine: number;
  /** Columns in which a bounded look saw values that are no envelopes; null where this role may not read the tables. */
  readonly not_envelopes: readonly NonEnvelopes[] | null;
  readonly schedule: ScheduleReport | null;
  /** What reads have moved to the active key, and what is left. */
  readonly lazy: LazyStatus | null;
  /** Keys that no backup covers. */
  readonly unbacked_keys: readonly number[];
  readonly next: string;
}

export interface StatusReport {
  readonly keyrings: readonly KeyringStatus[];
  readonly members: readonly {
    readonly member: string;
    readonly kind: string;
    readonly live: boolean;
    readonly heartbeat_at: string;
    /** Where it answers `/healthz`, `/readyz` and `/metrics`; null for an application. */
    readonly health_url: string | null;
  }[];
  readonly supervisor: boolean;
  /** Of the leading one. */
  readonly supervisor_health_url: string | null;
  readonly queue: { readonly backend: string; readonly prefix: string } | null;
  readonly pace: PaceReport | null;
  /** Tables whose fence against retired keys is missing or was touched. */
  readonly fence_troubles: readonly FenceTrouble[];
  readonly runs: readonly RunReport[];
  readonly last_backup: { readonly taken_at: string; readonly file_name: string; readonly age_seconds: number } | null;
  /** The next safe command. */
  readonly next: string;
}

export async function readStatus(context: ControlContext): Promise<StatusReport> {
  const { database } = context;
  const members = await listMembers(database);
  const unfinished = (await listUnfinishedRuns(database)).filter((run) => run.kind === 'reencrypt');
  const keyrings: KeyringStatus[] = [];
  for (const name of await listKeyringNames(database))
    keyrings.push(await keyringStatus(context, await getKeyring(database, name), members, unfinished));
  const runs = await listRuns(context, 5);
  const queue = await findQueueRecord(database);
  const leader = await findLeader(database);
  const troubles = await listFenceTroubles(database);
  const first = keyrings.map((keyring) => keyring.next).find((command) => command !== nothingToDo) ?? nothingToDo;
  const leak = await commandAfterLeak(context, await listRoots(database));
  const next = leak ?? (first === nothingToDo && troubles.length > 0 ? 'keyturn init' : first);
  const backup = await findLastBackup(database);
  return {
    keyrings,
    members: members.map((member) => ({
      member: memberTitle(member),
      kind: member.kind,
      live: member.isLive,
      heartbeat_at: member.heartbeatAt.toISOString(),
      health_url: member.healthUrl ?? null,
    })),
    supervisor: leader !== undefined,
    supervisor_health_url: leader?.healthUrl ?? null,
    queue: queue === undefined ? null : { backend: queue.backend, prefix: queue.prefix },
    pace: await readPaceReport(database),
    fence_troubles: troubles,
    runs,
    last_backup:
      backup === undefined
        ? null
        : { taken_at: backup.takenAt.toISOString(), file_name: backup.fileName, age_seconds: backup.ageSeconds },
    next: keyrings.length === 0 ? 'keyturn init' : next,
  };
}

async function keyringStatus(
  context: ControlContext,
  keyring: StoredKeyring,
  members: readonly MemberRow[],
  unfinished: readonly Run[],
): Promise<KeyringStatus> {
  const { database } = context;
  const active = keyring.keys.find((key) => key.state === 'active');
  const staged = keyring.keys.find((key) => key.state === 'staged');
  const decryptOnly = keyring.keys.filter((key) => key.state === 'decrypt_only');
  const lastRun = active === undefined ? undefined : await findRunToward(database, keyring.id, Number(active.id));
  const { rows } = await database.query(
    'SELECT extract(epoch FROM clock_timestamp() - $1::timestamptz)::float8 / 86400, cryptoperiod_days FROM keyturn.keyring WHERE id = $2',
    [active?.activatedAt ?? null, keyring.id],
  );
  const limits = active === undefined ? undefined : encryptionLimits[active.algorithm];
  const encryptions = active === undefined ? null : await countReserved(database, Number(active.id));
  const ageDays = typeof rows[0]?.[0] === 'number' ? rows[0][0] : undefined;
  const required = { keyringId: keyring.id, expectedMembers: await listExpectedMembers(database) };
  const laggards =
    active === undefined ? [] : findLaggards(members, { ...required, writesWithKeyId: Number(active.id) });
  const withoutStaged =
    staged === undefined ? [] : findLaggards(members, { ...required, holdsKeyId: Number(staged.id) });
  const quarantined = await countUnresolved(database, keyring.id);
  const schedule = await findScheduleReport(database, keyring.id);
  const targets = (await listRegistered(database)).filter((target) => target.keyringId === keyring.id).length;
  return {
    keyring: keyring.name,
    generation: keyring.generation,
    active_key: active === undefined ? null : keyTitle(keyring.name, active),
    active_key_age_days: ageDays === undefined ? null : Math.round(ageDays * 10) / 10,
    cryptoperiod_left_days: ageDays === undefined ? null : Math.round((Number(rows[0]?.[1]) - ageDays) * 10) / 10,
    encryptions,
    encryption_limit: limits?.refuse ?? null,
    encryptions_near_limit: limits !== undefined && encryptions !== null && encryptions >= limits.warn,
    staged_key: staged === undefined ? null : keyTitle(keyring.name, staged),
    staged_key_behind: withoutStaged.map(({ member, why }) => `${member} ${why}`),
    decrypt_only_keys: decryptOnly.map((key) => keyTitle(keyring.name, key)),
    retired_keys: keyring.keys.filter((key) => key.state === 'retired').map((key) => keyTitle(keyring.name, key)),
    pending_destructions: await listPendingDestructions(database, keyring),
    targets,
    laggards: laggards.map(({ member, why }) => `${member} ${why}`),
    last_run:
      lastRun === undefined
        ? null
        : { run_id: lastRun.id, state: lastRun.state, verified_at: lastRun.verifiedAt?.toISOString() ?? null },
    cells_in_quarantine: quarantined,
    not_envelopes: (await nonEnvelopesOf(context, keyring)) ?? null,
    unbacked_keys: await listUnbackedKeys(database, keyring.id),
    schedule: schedule ?? null,
    lazy: active === undefined ? null : await lazyStatusOf(context, keyring, active, ageDays ?? 0),
    next:
      commandBesideSchedule(schedule) ??
      nextCommand({
        keyring: keyring.name,
        isRotationBegun: (await findStagedOrder(database, keyring.id))?.isOrdered === true,
        hasStandby: staged !== undefined,
        oldestDecryptOnly: decryptOnly[0] === undefined ? undefined : String(decryptOnly[0].id),
        targets,
        unfinished:
          unfinished.find((run) => run.keyringId === keyring.id && run.state === 'paused') ??
          unfinished.find((run) => run.keyringId === keyring.id),
        lastRun,
        isStaleSince: await isStaleSince(context, lastRun),
        quarantined,
        runners: await findRunners(context),
      }),
  };
}

async function nonEnvelopesOf(
  { database }: ControlContext,
  keyring: StoredKeyring,
): Promise<readonly NonEnvelopes[] | undefined> {
  try {
    const found: NonEnvelopes[] = [];
    for (const target of await listTargets(database, keyring.id))
      found.push(...(await lookForNonEnvelopes(database, keyring, target)));
    return found;
  } catch (error) {
    // As with what is left for reads: doctor says why, status goes on.
    if (isKeyturnError(error) && error.code !== 'DATABASE_UNAVAILABLE') return undefined;
    throw error;
  }
}

/** Whether a scan of the whole keyring, newer than the run, found cells that do not name the active key. */
async function isStaleSince({ database }: ControlContext, lastRun: Run | undefined): Promise<boolean> {
  if (lastRun === undefined) return false;
  const scan = await findRunToward(database, lastRun.keyringId, lastRun.targetKeyId, 'verify');
  return scan !== undefined && scan.id > lastRun.id && (await sumRun(database, scan)).staleCells > 0;
}

/** What a schedule has begun needs no other hand, unless it waits for one. */
function commandBesideSchedule(schedule: ScheduleReport | undefined): string | undefined {
  const latest = schedule?.latest ?? undefined;
  // Its run is looked at as any other.
  if (latest === undefined || !isOpen(latest.state) || latest.state === 'reencrypting') return undefined;
  return latest.waits_for === null ? nothingToDo : 'keyturn schedule list';
}
