// The operator's verbs on members: who holds which keys, and forgetting one that will not come back. They need the database
// alone.
import { KeyturnError } from '../errors.js';
import { keyTitle } from '../keys/keyring.js';
import { isNamed, memberTitle } from '../rotation/convergence.js';
import { getKeyring, listKeyringNames } from '../store/keys.js';
import {
  forgetMember,
  listExpectedMembers,
  listMembers,
  memberLiveSeconds,
  setExpectedMembers,
  type MemberRow,
} from '../store/members.js';
import type { ControlContext } from './context.js';

export interface MemberListing {
  readonly id: string;
  readonly member: string;
  readonly name: string;
  readonly kind: string;
  readonly host: string;
  readonly pid: number;
  readonly version: string;
  readonly live: boolean;
  /** Since its last heartbeat. */
  readonly silent_seconds: number;
  readonly started_at: string;
  readonly expected: boolean;
  readonly formats: readonly string[];
  readonly algorithms: readonly string[];
  readonly keyrings: readonly {
    readonly keyring: string;
    readonly generation: number;
    readonly newest_generation: number;
    readonly writes_with: string | null;
    readonly holds_key_ids: readonly number[];
  }[];
}

export interface MembersReport {
  readonly members: readonly MemberListing[];
  /** Names that keyturn.yaml expects and no live member bears: they hold the next activation back. */
  readonly missing: readonly string[];
}

export async function listMemberListings(context: ControlContext): Promise<MembersReport> {
  const { database } = context;
  const names = await listKeyringNames(database);
  const keyrings = await Promise.all(names.map((name) => getKeyring(database, name)));
  const expected = await listExpectedMembers(database);
  const members = await listMembers(database);
  return {
    members: members.map((member) => ({
      id: member.id,
      member: memberTitle(member),
      name: member.name,
      kind: member.kind,
      host: member.host,
      pid: member.pid,
      version: member.version,
      live: member.isLive,
      silent_seconds: Math.round(member.silentSeconds),
      started_at: member.startedAt.toISOString(),
      expected: expected.includes(member.name),
      formats: member.formats,
      algorithms: member.algorithms,
      keyrings: member.keyrings.flatMap((held) => {
        const keyring = keyrings.find((candidate) => candidate.id === held.keyringId);
        if (keyring === undefined) return [];
        const key = keyring.keys.find((candidate) => candidate.id === held.writeKeyId);
        return [
          {
            keyring: keyring.name,
            generation: held.generation,
            newest_generation: keyring.generation,
            writes_with: key === undefined ? null : keyTitle(keyring.name, key),
            holds_key_ids: held.heldKeyIds,
          },
        ];
      }),
    })),
    missing: expected.filter((name) => !members.some((member) => member.isLive && member.name === name)),
  };
}

export interface ForgetReport {
  readonly forgotten: readonly string[];
  /** Its name was expected and is not any more, until the next `init` with the same keyturn.yaml. */
  readonly no_longer_expected: boolean;
  /** What fails where one of them is alive after all. */
  readonly if_alive: readonly string[];
}

/**
 * Forgets every member of that name or id, and expects the name no longer. A live one only when `evenLive`: should it be
 * alive, it reports again within seconds and is waited for again. Throws MEMBER_NOT_FOUND, MEMBER_LIVE.
 */
export async function forget(
  context: ControlContext,
  word: string,
  options: { readonly evenLive: boolean; readonly reason: string | undefined },
): Promise<ForgetReport> {
  const { database } = context;
  const expected = await listExpectedMembers(database);
  const members = (await listMembers(database)).filter((member) => isNamed(member, word));
  const isExpected = expected.includes(word);
  if (members.length === 0 && !isExpected)
    throw new KeyturnError(
      'MEMBER_NOT_FOUND',
      `there is no member "${word}", live, silent or expected; expected a name or an id; see: keyturn member list`,
      { member: word },
    );
  const live = members.filter((member) => member.isLive);
  if (live.length > 0 && !options.evenLive) refuseLive(word, live);
  const forgotten = await database.transaction(async (client) => {
    if (isExpected)
      await setExpectedMembers(
        client,
        expected.filter((name) => name !== word),
        options.reason,
      );
    const gone: string[] = [];
    for (const member of members)
      if (await forgetMember(client, member, memberTitle(member), options.reason)) gone.push(memberTitle(member));
    return gone;
  });
  return { forgotten, no_longer_expected: isExpected, if_alive: await whatFails(context, members) };
}

function refuseLive(word: string, live: readonly MemberRow[]): never {
  const heard = live.map((member) => `${memberTitle(member)} was heard ${Math.round(member.silentSeconds)} s ago`);
  throw new KeyturnError(
    'MEMBER_LIVE',
    `${heard.join('; ')}; a member is silent after ${memberLiveSeconds} s, and nobody waits for it from then on; stop it, or where it was killed and cannot come back: keyturn member forget ${word} --live`,
    { members: live.map(memberTitle) },
  );
}

/** A forgotten process that runs on reads with the keys it holds and no others. */
async function whatFails(context: ControlContext, members: readonly MemberRow[]): Promise<readonly string[]> {
  const { database } = context;
  const fails: string[] = [];
  for (const name of await listKeyringNames(database)) {
    const keyring = await getKeyring(database, name);
    for (const member of members) {
      const held = member.keyrings.find(({ keyringId }) => keyringId === keyring.id);
      if (held === undefined) continue;
      const unknown = keyring.keys.filter(
        (key) => (key.state === 'staged' || key.state === 'active') && !held.heldKeyIds.includes(Number(key.id)),
      );
      const now = unknown.map((key) => keyTitle(name, key)).join(', ');
      fails.push(
        `${memberTitle(member)} cannot read values written with ${now === '' ? `keys of ${name} that are staged from now on` : `${now} or later keys of ${name}`}, until it has refreshed`,
      );
    }
  }
  return fails;
}
