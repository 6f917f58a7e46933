// status: keyrings, coverage as the last scans saw it, members, runs, queue, and the next safe command. Reads only; needs the
// database alone.
import { keyTitle } from '../keys/keyring.js';
import type { StoredKeyring } from '../keys/key-store.js';
import { findLaggards, memberTitle } from '../rotation/convergence.js';
import { findLastBackup, listUnbackedKeys } from '../store/backups.js';
import { getKeyring, listKeyringNames } from '../store/keys.js';
import { hasLeader } from '../store/leadership.js';
import { listMembers, type MemberRow } from '../store/members.js';
import { findQueueRecord } from '../store/queue-record.js';
import { listRegistered } from '../store/registry.js';
import { countUnresolved } from '../store/quarantine.js';
import { findRunToward, listUnfinishedRuns, sumRun, type Run } from '../store/runs.js';
import type { ControlContext } from './context.js';
import { nextCommand, nothingToDo } from './next-command.js';
import { findRunners, listRuns, type RunReport } from './runs.js';

export interface KeyringStatus {
  readonly keyring: string;
  readonly generation: number;
  readonly active_key: string | null;
  readonly active_key_age_days: number | null;
  readonly staged_key: string | null;
  readonly decrypt_only_keys: readonly string[];
  readonly retired_keys: readonly string[];
  readonly targets: number;
  readonly laggards: readonly string[];
  /** State of the newest run toward the active key. */
  readonly last_run: { readonly run_id: number; readonly state: string; readonly verified_at: string | null } | null;
  /** Cells that failed and are not resolved. */
  readonly cells_in_quarantine: number;
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
  }[];
  readonly supervisor: boolean;
  readonly queue: { readonly backend: string; readonly prefix: string } | null;
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
  const backup = await findLastBackup(database);
  const next = keyrings.map((keyring) => keyring.next).find((command) => command !== nothingToDo) ?? nothingToDo;
  return {
    keyrings,
    members: members.map((member) => ({
      member: memberTitle(member),
      kind: member.kind,
      live: member.isLive,
      heartbeat_at: member.heartbeatAt.toISOString(),
    })),
    supervisor: await hasLeader(database),
    queue: queue === undefined ? null : { backend: queue.backend, prefix: queue.prefix },
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
    'SELECT extract(epoch FROM clock_timestamp() - $1::timestamptz)::float8 / 86400',
    [active?.activatedAt ?? null],
  );
  const laggards =
    active === undefined
      ? []
      : findLaggards(members, {
          keyringId: keyring.id,
          writesWithKeyId: Number(active.id),
          expectedMembers: context.config.expectMembers,
        });
  const quarantined = await countUnresolved(database, keyring.id);
  const targets = (await listRegistered(database)).filter((target) => target.keyringId === keyring.id).length;
  return {
    keyring: keyring.name,
    generation: keyring.generation,
    active_key: active === undefined ? null : keyTitle(keyring.name, active),
    active_key_age_days: typeof rows[0]?.[0] === 'number' ? Math.round(rows[0][0] * 10) / 10 : null,
    staged_key: staged === undefined ? null : keyTitle(keyring.name, staged),
    decrypt_only_keys: decryptOnly.map((key) => keyTitle(keyring.name, key)),
    retired_keys: keyring.keys.filter((key) => key.state === 'retired').map((key) => keyTitle(keyring.name, key)),
    targets,
    laggards: laggards.map(({ member, why }) => `${member} ${why}`),
    last_run:
      lastRun === undefined
        ? null
        : { run_id: lastRun.id, state: lastRun.state, verified_at: lastRun.verifiedAt?.toISOString() ?? null },
    cells_in_quarantine: quarantined,
    unbacked_keys: await listUnbackedKeys(database, keyring.id),
    next: nextCommand({
      keyring: keyring.name,
      isStaged: staged !== undefined,
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

/** Whether a scan of the whole keyring, newer than the run, found cells that do not name the active key. */
async function isStaleSince({ database }: ControlContext, lastRun: Run | undefined): Promise<boolean> {
  if (lastRun === undefined) return false;
  const scan = await findRunToward(database, lastRun.keyringId, lastRun.targetKeyId, 'verify');
  return scan !== undefined && scan.id > lastRun.id && (await sumRun(database, scan)).staleCells > 0;
}
