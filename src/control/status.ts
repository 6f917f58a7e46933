// status: keyrings, coverage as the last scans saw it, members, runs, queue, and the next safe command. Reads only; needs the
// database alone.
import { keyTitle } from '../keys/keyring.js';
import type { StoredKeyring } from '../keys/key-store.js';
import { findLaggards, memberTitle } from '../rotation/convergence.js';
import { isFinished } from '../rotation/run.js';
import { getKeyring, listKeyringNames } from '../store/keys.js';
import { hasLeader } from '../store/leadership.js';
import { listMembers, type MemberRow } from '../store/members.js';
import { findQueueRecord } from '../store/queue-record.js';
import { listRegistered } from '../store/registry.js';
import { findRunToward, type Run } from '../store/runs.js';
import type { ControlContext } from './context.js';
import { lazyStatusOf, type LazyStatus } from './lazy-upgrades.js';
import { listRuns, type RunReport } from './runs.js';

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
  /** What reads have moved to the active key, and what is left. */
  readonly lazy: LazyStatus | null;
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
  /** The next safe command. */
  readonly next: string;
}

export async function readStatus(context: ControlContext): Promise<StatusReport> {
  const { database } = context;
  const members = await listMembers(database);
  const keyrings: KeyringStatus[] = [];
  for (const name of await listKeyringNames(database))
    keyrings.push(await keyringStatus(context, await getKeyring(database, name), members));
  const runs = await listRuns(context, 5);
  const queue = await findQueueRecord(database);
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
    next: keyrings.length === 0 ? 'keyturn init' : next,
  };
}

const nothingToDo = 'nothing to do';

async function keyringStatus(
  context: ControlContext,
  keyring: StoredKeyring,
  members: readonly MemberRow[],
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
  const targets = (await listRegistered(database)).filter((target) => target.keyringId === keyring.id).length;
  const ageDays = typeof rows[0]?.[0] === 'number' ? rows[0][0] : undefined;
  return {
    keyring: keyring.name,
    generation: keyring.generation,
    active_key: active === undefined ? null : keyTitle(keyring.name, active),
    active_key_age_days: ageDays === undefined ? null : Math.round(ageDays * 10) / 10,
    staged_key: staged === undefined ? null : keyTitle(keyring.name, staged),
    decrypt_only_keys: decryptOnly.map((key) => keyTitle(keyring.name, key)),
    retired_keys: keyring.keys.filter((key) => key.state === 'retired').map((key) => keyTitle(keyring.name, key)),
    targets,
    laggards: laggards.map(({ member, why }) => `${member} ${why}`),
    last_run:
      lastRun === undefined
        ? null
        : { run_id: lastRun.id, state: lastRun.state, verified_at: lastRun.verifiedAt?.toISOString() ?? null },
    lazy: active === undefined ? null : await lazyStatusOf(context, keyring, active, ageDays ?? 0),
    next: nextCommand(keyring, {
      staged: staged !== undefined,
      decryptOnly: decryptOnly.map((key) => String(key.id)),
      lastRun,
      laggards: laggards.length,
      targets,
    }),
  };
}

/** The one command that is safe and useful now. */
function nextCommand(
  keyring: StoredKeyring,
  seen: {
    staged: boolean;
    decryptOnly: readonly string[];
    lastRun: Run | undefined;
    laggards: number;
    targets: number;
  },
): string {
  const which = `--keyring ${keyring.name}`;
  if (seen.staged) return `keyturn key activate ${which}`;
  if (seen.lastRun?.state === 'paused')
    return `keyturn run show ${seen.lastRun.id}, then keyturn run resume ${seen.lastRun.id}`;
  if (seen.lastRun !== undefined && !isFinished(seen.lastRun.state)) return `keyturn run watch ${seen.lastRun.id}`;
  const [oldest] = seen.decryptOnly;
  if (oldest === undefined || seen.targets === 0) return nothingToDo;
  if (seen.lastRun?.state === 'succeeded') return `keyturn key retire ${oldest} ${which}`;
  if (seen.lastRun?.state === 'completed_with_failures')
    return `keyturn run show ${seen.lastRun.id}, mend what failed, then keyturn reencrypt ${which} --wait`;
  return `keyturn reencrypt ${which} --wait`;
}
