// Member rows: who holds which keyring generation. A member is live until 45 s after its last heartbeat, by the database
// clock; what a member reports decides convergence (I5).
import { writeAudit } from './audit.js';
import type { Queryable } from './database.js';

export type MemberKind = 'application' | 'worker' | 'supervisor';

export const memberLiveSeconds = 45;

export interface MemberIdentity {
  readonly id: string;
  readonly kind: MemberKind;
  readonly name: string;
  readonly host: string;
  readonly pid: number;
  readonly version: string;
  readonly formats: readonly string[];
  readonly algorithms: readonly string[];
  /** Where it answers health and metrics; applications do not. */
  readonly healthUrl: string | undefined;
}

export interface HeldKeyring {
  readonly keyringId: string;
  readonly generation: number;
  readonly writeKeyId: number | undefined;
  readonly heldKeyIds: readonly number[];
  /** Root keys, by their number in the control schema, that the member could start with. */
  readonly rootIds: readonly number[];
  /** Keys of foreign formats that it holds; none where left out. */
  readonly foreignKeyIds?: readonly string[];
}

export interface MemberRow extends MemberIdentity {
  readonly startedAt: Date;
  readonly heartbeatAt: Date;
  readonly isLive: boolean;
  /** Since its last heartbeat, by the database clock. */
  readonly silentSeconds: number;
  readonly keyrings: readonly HeldKeyring[];
}

/** One statement: the member row, and what it holds of each keyring. Refused for a member of another login. */
export async function beat(
  database: Queryable,
  member: MemberIdentity,
  keyrings: readonly HeldKeyring[],
): Promise<void> {
  await database.query('SELECT keyturn.beat($1, $2)', [
    JSON.stringify(member),
    JSON.stringify(
      keyrings.map((held) => ({
        keyring_id: held.keyringId,
        generation: held.generation,
        write_key_id: held.writeKeyId ?? null,
        held_key_ids: held.heldKeyIds,
        root_key_ids: held.rootIds,
        foreign_key_ids: held.foreignKeyIds ?? [],
      })),
    ),
  ]);
}

/** A member takes its own row away. */
export async function leave(database: Queryable, id: string): Promise<void> {
  await database.query('SELECT keyturn.leave($1)', [id]);
}

/** False when it has left by itself meanwhile. */
export async function forgetMember(
  client: Queryable,
  member: MemberRow,
  title: string,
  reason: string | undefined,
): Promise<boolean> {
  const { rowCount } = await client.query('DELETE FROM keyturn.member WHERE id = $1', [member.id]);
  if (rowCount === 0) return false;
  await writeAudit(client, {
    action: 'member.forget',
    object: `member ${member.id}`,
    reason,
    before: { member: title, live: member.isLive, silentSeconds: Math.round(member.silentSeconds) },
  });
  return true;
}

/** Names that keyturn.yaml expects among the live members, as `init` last recorded them. */
export async function listExpectedMembers(database: Queryable): Promise<readonly string[]> {
  const { rows } = await database.query('SELECT name FROM keyturn.expected_member ORDER BY name');
  return rows.map((row) => String(row[0]));
}

/** Writes, and records, only what differs. */
export async function setExpectedMembers(
  client: Queryable,
  names: readonly string[],
  reason: string | undefined,
): Promise<void> {
  await client.query('LOCK TABLE keyturn.expected_member IN SHARE ROW EXCLUSIVE MODE');
  const before = await listExpectedMembers(client);
  const after = [...new Set(names)].toSorted();
  if (before.length === after.length && after.every((name) => before.includes(name))) return;
  await client.query('DELETE FROM keyturn.expected_member');
  await client.query('INSERT INTO keyturn.expected_member (name) SELECT unnest($1::text[])', [after]);
  await writeAudit(client, {
    action: 'member.expect',
    object: 'expected members',
    reason,
    before: { names: before },
    after: { names: after },
  });
}

/** Rows of members that stopped without saying so; kept for a day so that status can show them. */
export async function removeForgottenMembers(database: Queryable): Promise<number> {
  const { rowCount } = await database.query(
    `DELETE FROM keyturn.member WHERE heartbeat_at < clock_timestamp() - interval '1 day'`,
  );
  return rowCount;
}

export async function listMembers(database: Queryable): Promise<readonly MemberRow[]> {
  const { rows } = await database.query(
    `SELECT m.id, m.kind, m.name, m.host, m.pid, m.version, m.formats, m.algorithms, m.health_url, m.started_at, m.heartbeat_at,
       m.heartbeat_at > clock_timestamp() - make_interval(secs => $1),
       coalesce((SELECT jsonb_agg(jsonb_build_object('keyringId', k.keyring_id, 'generation', k.generation, 'writeKeyId', k.write_key_id, 'heldKeyIds', k.held_key_ids, 'rootIds', k.root_key_ids, 'foreignKeyIds', k.foreign_key_ids))
         FROM keyturn.member_keyring k WHERE k.member_id = m.id), '[]'),
       extract(epoch FROM clock_timestamp() - m.heartbeat_at)::float8
     FROM keyturn.member m ORDER BY m.kind, m.name, m.started_at`,
    [memberLiveSeconds],
  );
  return rows.map(
    ([
      id,
      kind,
      name,
      host,
      pid,
      version,
      formats,
      algorithms,
      healthUrl,
      startedAt,
      heartbeatAt,
      isLive,
      keyrings,
      silent,
    ]) => ({
      id: String(id),
      kind: String(kind) as MemberKind,
      name: String(name),
      host: String(host),
      pid: Number(pid),
      version: String(version),
      formats: formats as string[],
      algorithms: algorithms as string[],
      healthUrl: healthUrl === null ? undefined : String(healthUrl),
      startedAt: startedAt as Date,
      heartbeatAt: heartbeatAt as Date,
      isLive: isLive === true,
      silentSeconds: Math.max(0, Number(silent)),
      keyrings: (
        keyrings as {
          keyringId: string;
          generation: number;
          writeKeyId: number | null;
          heldKeyIds: number[];
          rootIds: number[];
          foreignKeyIds: string[];
        }[]
      ).map((held) => ({
        ...held,
        writeKeyId: held.writeKeyId ?? undefined,
      })),
    }),
  );
}
