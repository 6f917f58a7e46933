// Who holds a rotation back: what each live member must report, one missing thing at a time.
import { describe, expect, test } from 'vitest';
import {
  findExcused,
  findLaggards,
  memberTitle,
  type ReportingMember,
  type Requirement,
} from '../../src/rotation/convergence.js';

const requirement: Requirement = {
  keyringId: 'ring',
  holdsKeyId: 2,
  writesWithKeyId: 2,
  algorithm: 'xaes-256-gcm',
  formats: ['keyturn'],
};

function member(
  changes: Partial<ReportingMember> & { holds?: number[]; writes?: number | undefined } = {},
): ReportingMember {
  const { holds = [1, 2], ...rest } = changes;
  const writes = 'writes' in changes ? changes.writes : 2;
  return {
    id: 'id-1',
    name: 'shop',
    kind: 'application',
    host: 'host-1',
    pid: 7,
    isLive: true,
    formats: ['keyturn'],
    algorithms: ['xaes-256-gcm', 'aes-256-gcm'],
    keyrings: [{ keyringId: 'ring', generation: 5, writeKeyId: writes, heldKeyIds: holds, rootIds: [1] }],
    ...rest,
  };
}

describe('I5 laggards', () => {
  test('there are none when every live member can do what is needed', () => {
    expect(findLaggards([member(), member({ name: 'worker' })], requirement)).toEqual([]);
    expect(findLaggards([], requirement)).toEqual([]);
  });

  for (const { behind, why, lacking } of [
    { lacking: 'the key', behind: member({ holds: [1] }), why: 'does not hold key 2' },
    { lacking: 'the write key', behind: member({ writes: 1 }), why: 'writes with key 1' },
    { lacking: 'any write key', behind: member({ writes: undefined }), why: 'writes with key none' },
    { lacking: 'the algorithm', behind: member({ algorithms: ['aes-256-gcm'] }), why: 'does not read xaes-256-gcm' },
    { lacking: 'the format', behind: member({ formats: [] }), why: 'does not read format keyturn' },
  ]) {
    test(`a live member lacking ${lacking} is named with the reason`, () => {
      expect(findLaggards([member({ name: 'other' }), behind], requirement)).toEqual([
        { member: memberTitle(behind), why },
      ]);
    });
  }

  test('a member that could not start with the root key asked for is named', () => {
    expect(findLaggards([member({})], { keyringId: 'ring', opensRootId: 1 })).toEqual([]);
    expect(findLaggards([member({})], { keyringId: 'ring', opensRootId: 2 })).toEqual([
      { member: expect.stringContaining('pid 7 on host-1') as string, why: 'cannot open root key 2' },
    ]);
  });

  test('a member that is not live, or holds other keyrings only, holds nobody back', () => {
    const gone = member({ isLive: false, holds: [] });
    const elsewhere = member({
      keyrings: [{ keyringId: 'other', generation: 1, writeKeyId: 9, heldKeyIds: [9], rootIds: [1] }],
    });
    const supervisor = member({ keyrings: [] });
    expect(findLaggards([gone, elsewhere, supervisor], requirement)).toEqual([]);
  });

  test('an expected member that is missing, silent or without the keyring is a laggard; a live one is none', () => {
    const expecting = { ...requirement, expectedMembers: ['shop'] };
    const absent = [{ member: 'shop', why: 'is expected and not live' }];
    expect(findLaggards([member()], expecting)).toEqual([]);
    expect(findLaggards([member({ name: 'other' })], expecting)).toEqual(absent);
    expect(findLaggards([member({ isLive: false })], expecting)).toEqual(absent);
    expect(findLaggards([member({ keyrings: [] })], expecting)).toEqual(absent);
  });

  test('one that is live with another keyring only is not missing', () => {
    const elsewhere = member({
      keyrings: [{ keyringId: 'other', generation: 1, writeKeyId: 9, heldKeyIds: [9], rootIds: [1] }],
    });
    expect(findLaggards([elsewhere], { ...requirement, expectedMembers: ['shop'] })).toEqual([]);
  });

  test('one that the operator goes on without is excused by name or id, and the others are not', () => {
    const behind = member({ holds: [1] });
    const other = member({ id: 'id-2', name: 'billing', holds: [1] });
    for (const without of [['shop'], ['id-1']]) {
      const going = { ...requirement, without, expectedMembers: ['gone'] };
      const gone = { member: 'gone', why: 'is expected and not live' };
      expect(findLaggards([behind, other], going)).toEqual([
        { member: memberTitle(other), why: 'does not hold key 2' },
        gone,
      ]);
      expect(findExcused([behind, other], going)).toEqual([
        { member: memberTitle(behind), why: 'does not hold key 2' },
      ]);
      expect(findExcused([], { ...going, without: ['gone'] })).toEqual([gone]);
    }
    expect(findExcused([member()], { ...requirement, without: ['shop'] })).toEqual([]);
  });

  test('what is not required is not asked', () => {
    const bare = member({ holds: [], writes: undefined, formats: [], algorithms: [] });
    expect(findLaggards([bare], { keyringId: 'ring' })).toEqual([]);
  });

  test('a member is named by kind, name, process and host', () => {
    expect(memberTitle(member())).toBe('application shop (pid 7 on host-1)');
  });
});

describe('a column between two formats', () => {
  const holding = (generation: number, foreignKeyIds?: readonly string[]): ReportingMember =>
    member({
      keyrings: [
        {
          keyringId: 'ring',
          generation,
          writeKeyId: 1,
          heldKeyIds: [1],
          rootIds: [1],
          ...(foreignKeyIds === undefined ? {} : { foreignKeyIds }),
        },
      ],
    });

  test('a member with an older snapshot, or without the foreign key, is behind', () => {
    const need = { keyringId: 'ring', generation: 6, holdsForeignKeyId: 'plaintext' };
    expect(findLaggards([holding(6, ['plaintext'])], need)).toEqual([]);
    expect(findLaggards([holding(5, ['plaintext'])], need)).toMatchObject([{ why: 'holds generation 5, not 6' }]);
    for (const other of [holding(7), holding(7, ['pgcrypto env:OLD'])])
      expect(findLaggards([other], need)).toMatchObject([{ why: 'does not hold the key of plaintext' }]);
  });
});
