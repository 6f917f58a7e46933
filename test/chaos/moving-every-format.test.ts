// Columns in every shipped format and in a user's own: adopted in one run, turned back, left. Long, since members are
// waited for at every step.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { prepareMove } from '../../src/control/adopt.js';
import { listTargetListings, takeCensus } from '../../src/control/targets.js';
import {
  everyValue,
  nameOf,
  openMovingShop,
  refusal,
  request,
  rows,
  valueOf,
  type MovingShop,
} from '../support/moving-shop.js';

let moving: MovingShop;
beforeAll(async () => {
  moving = await openMovingShop();
});
afterAll(() => moving.close());

test('typeorm-encrypted, pgcrypto, bare AES-GCM, a jsonb path and a format of the user’s own move in one run', async () => {
  const whole = [
    request('account.cbc', 'typeorm-encrypted-cbc', 'env:OLD_SECRET'),
    request('account.gcm', 'typeorm-encrypted-gcm', 'env:OLD_SECRET'),
    request('account.pgp', 'pgcrypto', 'env:OLD_PASSPHRASE'),
    request('account.bare', 'aes-gcm-bytes', 'env:OLD_SECRET'),
    request('account.own', 'rot47'),
  ];
  for (const one of whole) await prepareMove(moving.context, one);
  expect(await moving.readAll('account.pgp')).toEqual(everyValue);
  const report = await moving.move(request('account.papers.passport', 'plaintext'));
  expect(report).toMatchObject({ state: 'succeeded', fields_stale: 0, failures: [], rows_updated: rows });
  for (const { column } of whole) {
    expect(await moving.readAll(`account.${column}`)).toEqual(everyValue);
    expect(await moving.finalize(`account.${column}`)).toMatchObject({ state: 'adopted', cells: rows });
  }
  expect(await moving.readAll('account.papers.passport', `papers #>> '{passport}'`)).toEqual(everyValue);
  expect(
    await moving.shop.query(`SELECT count(*)::int AS kept FROM account WHERE papers ->> 'kept' = id::text`),
  ).toEqual([{ kept: rows }]);
  expect(await moving.finalize('account.papers.passport')).toMatchObject({ state: 'adopted', cells: rows });
  expect((await takeCensus(moving.context, 'account')).every(({ key_id: id }) => typeof id === 'number')).toBe(true);
});

test('a column goes to typeorm-encrypted, is readable on the way, and is no longer registered', async () => {
  const place = 'account.gcm';
  const wanted = request(place, 'typeorm-encrypted-gcm', 'env:OLD_SECRET', 'leaving');
  const { target: table, column } = nameOf(place);
  const envelopes = (): Promise<Record<string, unknown>[]> =>
    moving.shop.query(`SELECT count(*)::int AS envelopes FROM ${table} WHERE ${column} LIKE 'kt1.%'`);
  await prepareMove(moving.context, wanted);
  const opened = moving.app.column(table, column);
  expect(await opened.encrypt({ pk: 1 }, valueOf(1))).not.toMatch(/^kt1\./);
  expect(await moving.readAll(place)).toEqual(everyValue);
  await expect(moving.finalize(place)).rejects.toThrow(refusal('COLUMN_MOVE_REFUSED', /60 of 60/));
  expect(await moving.move(wanted)).toMatchObject({
    state: 'succeeded',
    fields_stale: 0,
    failures: [],
    rows_updated: rows,
  });
  expect(await envelopes()).toEqual([{ envelopes: 0 }]);
  expect(await moving.readAll(place)).toEqual(everyValue);
  expect(await moving.finalize(place)).toMatchObject({ state: 'left', cells: rows });
  const listed = (await listTargetListings(moving.context)).flatMap((one) => one.columns.map(({ name }) => name));
  expect(listed).not.toContain(column);
  // An application that runs on goes on in the form that the column has now.
  expect(await opened.encrypt({ pk: 1 }, valueOf(1))).not.toMatch(/^kt1\./);
});

test('a move may turn back before it is finalized', async () => {
  await prepareMove(moving.context, request('account.own', 'rot47'));
  expect(await moving.move(request('account.own', 'rot47', undefined, 'leaving'))).toMatchObject({
    rows_updated: rows,
  });
  expect(await moving.move(request('account.own', 'rot47'))).toMatchObject({ state: 'succeeded', rows_updated: rows });
  expect(await moving.finalize('account.own')).toMatchObject({ state: 'adopted', cells: rows });
  expect(await moving.readAll('account.own')).toEqual(everyValue);
});

test('I5 members without the secret hold the move back by name, I8 and their values are called neither lost nor damaged', async () => {
  const wanted = request('badge.wide', 'pgcrypto', 'env:NOWHERE');
  await expect(prepareMove({ ...moving.context, patienceMs: 7_000 }, wanted)).rejects.toThrow(
    refusal('MEMBER_BEHIND', /application application .* does not hold the key of pgcrypto env:NOWHERE/),
  );
  await expect(moving.app.column('badge', 'wide').decrypt({ pk: 1 }, Buffer.from('c30d', 'hex'))).rejects.toThrow(
    refusal('KEY_NOT_HELD'),
  );
});
