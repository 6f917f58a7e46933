// Who holds a rotation back: the live members that cannot do yet what the next step needs of all of them (I5).

export interface ReportingMember {
  readonly id: string;
  readonly name: string;
  readonly kind: string;
  readonly host: string;
  readonly pid: number;
  readonly isLive: boolean;
  readonly formats: readonly string[];
  readonly algorithms: readonly string[];
  readonly keyrings: readonly {
    readonly keyringId: string;
    readonly generation: number;
    readonly writeKeyId: number | undefined;
    readonly heldKeyIds: readonly number[];
    readonly rootIds: readonly number[];
    readonly foreignKeyIds?: readonly string[];
  }[];
}

/** What every live member of the keyring must report. */
export interface Requirement {
  readonly keyringId: string;
  /** Can decrypt with this key. */
  readonly holdsKeyId?: number;
  /** Encrypts with this key. */
  readonly writesWithKeyId?: number;
  /** Could start with this root key. */
  readonly opensRootId?: number;
  /** Holds a snapshot of this generation or a newer one. */
  readonly generation?: number;
  /** Reads and writes foreign values under this key. */
  readonly holdsForeignKeyId?: string;
  /** Reads this algorithm and these formats. */
  readonly algorithm?: string;
  readonly formats?: readonly string[];
  /** Names that must be among the live members. */
  readonly expectedMembers?: readonly string[];
  /** Names or ids of those that the operator goes on without. */
  readonly without?: readonly string[];
}

export interface Laggard {
  readonly member: string;
  readonly why: string;
}

export function findLaggards(members: readonly ReportingMember[], requirement: Requirement): readonly Laggard[] {
  return findBehind(members, requirement, false);
}

/** Those that `without` names and that would be laggards otherwise. */
export function findExcused(members: readonly ReportingMember[], requirement: Requirement): readonly Laggard[] {
  return findBehind(members, requirement, true);
}

function findBehind(
  members: readonly ReportingMember[],
  requirement: Requirement,
  isExcused: boolean,
): readonly Laggard[] {
  const { without = [], expectedMembers = [] } = requirement;
  const live = members.filter((member) => member.isLive && member.keyrings.length > 0);
  const behind = live
    .filter((member) => member.keyrings.some((held) => held.keyringId === requirement.keyringId))
    .filter((member) => without.some((word) => isNamed(member, word)) === isExcused)
    .flatMap((member) => {
      const why = whyBehind(member, requirement);
      return why === undefined ? [] : [{ member: memberTitle(member), why }];
    });
  // One that is live with other keyrings only is not missing: it has nothing to do with this one.
  const names = new Set(live.map((member) => member.name));
  const absent = expectedMembers
    .filter((name) => !names.has(name) && without.includes(name) === isExcused)
    .map((name) => ({ member: name, why: 'is expected and not live' }));
  return [...behind, ...absent];
}

/** A name stands for every process of that name, an id for one. */
export function isNamed(member: Pick<ReportingMember, 'id' | 'name'>, word: string): boolean {
  return member.id === word || member.name === word;
}

function whyBehind(member: ReportingMember, requirement: Requirement): string | undefined {
  const held = member.keyrings.find((keyring) => keyring.keyringId === requirement.keyringId);
  const format = requirement.formats?.find((name) => !member.formats.includes(name));
  if (format !== undefined) return `does not read format ${format}`;
  if (requirement.algorithm !== undefined && !member.algorithms.includes(requirement.algorithm))
    return `does not read ${requirement.algorithm}`;
  if (requirement.generation !== undefined && (held?.generation ?? 0) < requirement.generation)
    return `holds generation ${held?.generation ?? 'none'}, not ${requirement.generation}`;
  if (
    requirement.holdsForeignKeyId !== undefined &&
    held?.foreignKeyIds?.includes(requirement.holdsForeignKeyId) !== true
  )
    return `does not hold the key of ${requirement.holdsForeignKeyId}`;
  if (requirement.holdsKeyId !== undefined && held?.heldKeyIds.includes(requirement.holdsKeyId) !== true)
    return `does not hold key ${requirement.holdsKeyId}`;
  if (requirement.writesWithKeyId !== undefined && held?.writeKeyId !== requirement.writesWithKeyId)
    return `writes with key ${held?.writeKeyId ?? 'none'}`;
  if (requirement.opensRootId !== undefined && held?.rootIds.includes(requirement.opensRootId) !== true)
    return `cannot open root key ${requirement.opensRootId}`;
  return undefined;
}

export function memberTitle(member: Pick<ReportingMember, 'name' | 'kind' | 'host' | 'pid'>): string {
  return `${member.kind} ${member.name} (pid ${member.pid} on ${member.host})`;
}
