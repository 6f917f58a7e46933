// A column that comes from plaintext and goes to it, online: both forms are read meanwhile, one alone afterwards. What
// cannot work is refused before it begins. Every other format: moving-formats.test.ts, and test/chaos at length.
import { Column, Entity, In, PrimaryColumn } from 'typeorm';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openControl } from '../../src/app.js';
import { examineEverything } from '../../src/control/doctor.js';
import { init } from '../../src/control/init.js';
import { prepareMove, type MoveRequest } from '../../src/control/adopt.js';
import { rebindValues } from '../../src/control/rebind.js';
import { writeVerificationSql } from '../../src/control/verification-sql.js';
import { Encrypted } from '../../src/orm/index.js';
import { listTargetListings, takeCensus } from '../../src/control/targets.js';
import { runCapturedWith, type runCaptured } from '../cli/captured.js';
import {
  everyValue,
  nameOf,
  openMovingShop,
  refusal,
  request,
  rows,
  secrets,
  valueOf,
  type MovingShop,
} from '../support/moving-shop.js';

@Entity('person')
class PlainPerson {
  @PrimaryColumn({ type: 'bigint' })
  id!: string;

  @Column({ type: 'text' })
  plain!: string;
}

@Entity('person')
class EncryptedPerson {
  @PrimaryColumn({ type: 'bigint' })
  id!: string;

  @Encrypted({ type: 'string' })
  plain!: string;
}

type Person = PlainPerson | EncryptedPerson;

let moving: MovingShop;
beforeAll(async () => {
  moving = await openMovingShop();
});
afterAll(() => moving.close());

/** What an application with this entity reads after a restart, in the order of ids. */
async function readPeople(entity: new () => Person): Promise<string[]> {
  const people = await moving.restarted([entity], (dataSource) =>
    dataSource.manager.find<Person>(entity, { order: { id: 'ASC' } }),
  );
  return people.map(({ plain }) => plain);
}

const imageOf = (table: string): Promise<Record<string, unknown>[]> =>
  moving.shop.query(`SELECT md5(string_agg(p::text, '|' ORDER BY id)) FROM ${table} p`);

describe('adopting', () => {
  test('plaintext: both forms are read while rows move, a dry run writes none, and in the end the plaintext is refused', async () => {
    const wanted = request('person.plain', 'plaintext');
    const column = moving.app.column('person', 'plain');
    await expect(column.decrypt({ pk: 1 }, 'value 1 ü')).rejects.toThrow(refusal('DECRYPT_FAILED'));
    expect(await readPeople(PlainPerson)).toEqual(everyValue);
    await expect(moving.shop.order({ target: 'person' })).rejects.toThrow(
      refusal(
        'PREFLIGHT_REFUSED',
        /person.plain: it holds values of another form .*adopt --target public.person --column plain/,
      ),
    );
    expect(await prepareMove(moving.context, wanted)).toMatchObject({ move: 'adopting', is_new: true });
    expect(await prepareMove(moving.context, wanted)).toMatchObject({ is_new: false });
    expect(await column.decrypt({ pk: 1 }, 'value 1 ü')).toEqual({
      plaintext: 'value 1 ü',
      keyId: 'plaintext',
      stale: true,
    });
    expect(await column.encrypt({ pk: 1 }, 'new')).toMatch(/^kt1\./);
    const listed = await listTargetListings(moving.context);
    expect(listed.find(({ table }) => table === 'public.person')?.columns[0]?.move).toBe('adopting from plaintext');

    const before = await imageOf('person');
    expect(await moving.move(wanted, 'dry_run')).toMatchObject({ state: 'succeeded', fields_reencrypted: rows });
    expect(await imageOf('person')).toEqual(before);
    expect(await takeCensus(moving.context, 'person')).toMatchObject([{ key: 'none of ours: plaintext', cells: rows }]);
    await expect(moving.finalize('person.plain')).rejects.toThrow(refusal('COLUMN_MOVE_REFUSED', /60 of 60 cells/));

    // An unchanged entity is not written; what was read in the old form is moved soon after.
    await moving.restarted([EncryptedPerson], async ({ manager }) => {
      const [one] = await manager.findBy(EncryptedPerson, { id: In([1, 2]) });
      if (one !== undefined) await manager.save(one);
      expect(await imageOf('person')).toEqual(before);
      expect(one).toMatchObject({ plain: valueOf(1) });
    });
    const moved = `SELECT id::int FROM person WHERE plain LIKE 'kt1.%' ORDER BY id`;
    expect(await moving.shop.query(moved)).toEqual([{ id: 1 }, { id: 2 }]);
    for (const entity of [PlainPerson, EncryptedPerson]) {
      expect(await readPeople(entity)).toEqual(everyValue);
      await moving.shop.query('UPDATE person SET plain = $1 WHERE id = 7', [valueOf(7)]);
    }

    const report = await moving.move(wanted);
    expect(report).toMatchObject({ state: 'succeeded', fields_stale: 0, fields_examined: rows, failures: [] });
    expect(report.fields_reencrypted).toBeGreaterThanOrEqual(1);
    expect(await moving.readAll('person.plain')).toEqual(everyValue);
    await moving.shop.query('UPDATE person SET plain = $1 WHERE id = 5', ['written by an old version']);
    expect((await moving.readAll('person.plain'))[4]).toBe('written by an old version');
    await expect(moving.finalize('person.plain')).rejects.toThrow(refusal('COLUMN_MOVE_REFUSED', /1 of 60 cells/));
    await moving.shop.query('UPDATE person SET plain = $1 WHERE id = 5', [await column.encrypt({ pk: 5 }, valueOf(5))]);

    expect(await moving.finalize('person.plain')).toMatchObject({ state: 'adopted', cells: rows });
    expect(await moving.readAll('person.plain')).toEqual(everyValue);
    // Once every member holds a later change, it holds this one.
    await prepareMove(moving.context, request('diary.note', 'plaintext'));
    await expect(column.decrypt({ pk: 1 }, 'value 1 ü')).rejects.toThrow(refusal('DECRYPT_FAILED'));
    expect(await readPeople(EncryptedPerson)).toEqual(everyValue);
    await expect(readPeople(PlainPerson)).rejects.toThrow(refusal('TARGET_INVALID', /is a plain @Column\(\)/));
    const recorded = await moving.shop.query(
      `SELECT action FROM keyturn.audit WHERE object = 'column public.person.plain' ORDER BY id`,
    );
    expect(recorded.map(({ action }) => action)).toEqual(['target.column', 'column.adopting', 'column.adopted']);
  });

  test('a run that moves the column and is paused is named, not joined', async () => {
    await moving.shop.query(
      `INSERT INTO keyturn.run (kind, state, resume_state, keyring_id, target_key_id, generation)
       SELECT 'reencrypt', 'paused', 'running', k.id, d.id, k.generation + 100 FROM keyturn.keyring k JOIN keyturn.data_key d ON d.keyring_id = k.id AND d.state = 'active'`,
    );
    await expect(moving.move(request('diary.note', 'plaintext'))).rejects.toThrow(
      refusal('RUN_STATE_REFUSED', /is paused; .* keyturn run resume/),
    );
    await moving.shop.query(`UPDATE keyturn.run SET state = 'cancelled' WHERE state = 'paused'`);
  });

  test('I8 a damaged envelope is never taken for plaintext, neither by readers nor by the run', async () => {
    const wanted = request('diary.note', 'plaintext');
    await prepareMove(moving.context, wanted);
    const column = moving.app.column('diary', 'note');
    const envelope = (await column.encrypt({ pk: 2 }, 'note')) as Buffer;
    const flipped = (at: number): Buffer =>
      Buffer.from(envelope.map((byte, index) => (index === at ? byte ^ 1 : byte)));
    const damaged = [envelope.subarray(0, 8), flipped(7), flipped(9), flipped(envelope.length - 1)];
    for (const [at, stored] of damaged.entries()) {
      await expect(column.decrypt({ pk: 2 }, stored)).rejects.toThrow(
        expect.objectContaining({ name: 'KeyturnError' }),
      );
      await moving.shop.query('INSERT INTO diary VALUES ($1, $2)', [at + 1, stored]);
    }
    await moving.shop.query('INSERT INTO diary VALUES (10, $1)', [Buffer.from('KTM, a motorcycle')]);
    const report = await moving.move(wanted);
    // The last two name the active key, which a run takes at its word; finalizing compares whole headers, --deep decrypts.
    expect(report).toMatchObject({ state: 'completed_with_failures', fields_reencrypted: 1, fields_failed: 2 });
    const left = await moving.shop.query('SELECT note FROM diary WHERE id < 10 ORDER BY id');
    expect(left.map(({ note }) => note)).toEqual(damaged);
    await expect(moving.finalize('diary.note')).rejects.toThrow(refusal('COLUMN_MOVE_REFUSED', /3 of 5 cells/));
  });

  test('what cannot work is refused before anything changes', async () => {
    await moving.shop.query('INSERT INTO badge VALUES (1, repeat($1, 40))', ['x']);
    const alter = /holds 90 characters .*; run: ALTER TABLE "public"."badge" ALTER COLUMN "short" TYPE text/;
    const refused: [MoveRequest, string, RegExp][] = [
      [request('badge.short', 'plaintext'), 'COLUMN_MOVE_REFUSED', alter],
      [
        request('badge.wide', 'typeorm-encrypted-cbc', 'env:OLD_SECRET'),
        'COLUMN_MOVE_REFUSED',
        /in text, and .* bytea/,
      ],
      [request('badge.wide', 'plaintext', 'env:OLD_SECRET'), 'USAGE', /has no secret/],
      [request('badge.short', 'aes-gcm-hex'), 'USAGE', /needs its secret/],
      [request('badge.short', 'aes-gcm-hex', secrets.OLD_SECRET), 'USAGE', /env:NAME or --secret file:PATH/],
      [request('badge.wide', 'rot13'), 'CONFIG_INVALID', /format "rot13" is unknown here/],
      [request('badge.nothing', 'plaintext'), 'TARGET_NOT_FOUND', /has no column "nothing"/],
      [request('diary.note', 'pgcrypto', 'env:OLD_SECRET'), 'COLUMN_MOVE_REFUSED', /is being adopted from plaintext/],
    ];
    const before = await moving.shop.query('SELECT generation FROM keyturn.keyring');
    for (const [wanted, code, words] of refused)
      await expect(prepareMove(moving.context, wanted)).rejects.toThrow(refusal(code, words));
    await expect(moving.finalize('badge.wide')).rejects.toThrow(refusal('COLUMN_MOVE_REFUSED', /is not on its way/));
    const between = {
      target: 'diary',
      column: 'note',
      pk: ['10'],
      wasPk: ['11'],
      scope: undefined,
      wasScope: undefined,
    };
    await expect(rebindValues(moving.context, { ...between, isDryRun: false, reason: undefined })).rejects.toThrow(
      refusal('COLUMN_MOVE_REFUSED', /diary.note is between two formats/),
    );
    expect(await moving.shop.query('SELECT generation FROM keyturn.keyring')).toEqual(before);
  });
});

test('init tells columns that wait to be adopted from those that need it not, and looks again the next time', async () => {
  const { shop } = moving;
  await shop.query('CREATE TABLE late (id bigint PRIMARY KEY, empty text, old text, papers jsonb)');
  await shop.query(`INSERT INTO late VALUES (1, NULL, 'plain', '{"pass": "kt1.AAAA"}')`);
  const control = openControl({
    environment: shop.environment(),
    file: {
      keyrings: { people: { root: 'env:KEYTURN_ROOT_KEY' } },
      targets: [
        {
          table: 'late',
          keyring: 'people',
          columns: { empty: {}, old: {}, papers: { paths: { pass: ['pass'], other: ['other'] } } },
        },
      ],
    },
  });
  const awaiting = async (): Promise<unknown[]> => {
    await init(control.context);
    const found = await shop.query(
      `SELECT c.name FROM keyturn.target_column c JOIN keyturn.target t ON t.id = c.target_id
       WHERE t.table_name = 'late' AND c.awaits_adoption`,
    );
    return found.map(({ name }) => name);
  };
  expect(await awaiting()).toEqual(['old']);
  const waiting = (await examineEverything(moving.context)).filter(({ check }) => check === 'adoption');
  expect(waiting).toMatchObject([
    {
      level: 'refuse',
      subject: 'public.late.old',
      remedy: expect.stringContaining('--from FORMAT --prepare') as unknown,
    },
  ]);
  await shop.query(`UPDATE late SET old = 'kt1.BBBB'`);
  expect(await awaiting()).toEqual([]);
  await control.close();
});

describe('the command', () => {
  const run = (...args: string[]): ReturnType<typeof runCaptured> =>
    runCapturedWith({ environment: moving.shop.environment(), openControl }, 'adopt', '--target', 'badge', ...args);

  test('prepares, says what comes next, and orders the run', async () => {
    const prepared = await run('--column', 'wide', '--from', 'plaintext', '--prepare', '--json');
    expect({ code: prepared.code, ...(JSON.parse(prepared.stdout) as object) }).toMatchObject({
      code: 0,
      move: 'adopting',
      foreign_format: 'plaintext',
      is_new: true,
      next: 'let the application use the column, then keyturn adopt --target badge --column wide --from plaintext --wait',
    });
    const ordered = await run('--column', 'wide', '--from', 'plaintext', '--dry-run', '--json');
    expect(JSON.parse(ordered.stdout)).toMatchObject({
      begin: 'ordered',
      kind: 'dry_run',
      prepared: { is_new: false },
    });
  });

  test.each([
    [['--column', 'wide'], 2, /say where the column comes from/],
    [['--column', 'wide', '--from', 'plaintext', '--to', 'plaintext'], 2, /cannot be used with/],
    [['--column', 'wide', '--prepare', '--dry-run', '--from', 'plaintext'], 2, /cannot be used with/],
    [['--column', 'short', '--finalize'], 4, /is not on its way/],
    [['--column', 'none', '--finalize'], 3, /has no column "none"/],
  ])('%j ends with exit %i', async (args, code, words) => {
    const ended = await run(...args);
    expect(ended.code).toBe(code);
    expect(ended.stderr).toMatch(words);
  });
});

describe('leaving', () => {
  test('a column goes to plaintext, is readable on the way, and is no longer registered', async () => {
    const place = 'person.plain';
    const wanted = request(place, 'plaintext', undefined, 'leaving');
    const { target: table, column } = nameOf(place);
    const envelopes = (): Promise<Record<string, unknown>[]> =>
      moving.shop.query(`SELECT count(*)::int AS envelopes FROM ${table} WHERE ${column} LIKE 'kt1.%'`);
    await prepareMove(moving.context, wanted);
    const opened = moving.app.column(table, column);
    expect(await opened.encrypt({ pk: 1 }, valueOf(1))).not.toMatch(/^kt1\./);
    expect(await moving.readAll(place)).toEqual(everyValue);
    await expect(moving.finalize(place)).rejects.toThrow(refusal('COLUMN_MOVE_REFUSED', /60 of 60/));
    expect(await readPeople(PlainPerson)).toEqual(everyValue);
    await moving.restarted([PlainPerson], async ({ manager }) => {
      const one = await manager.findOneByOrFail(PlainPerson, { id: '4' });
      await manager.save(Object.assign(one, { plain: 'changed' }));
    });
    await moving.shop.query('UPDATE person SET plain = $1 WHERE id = 4 AND plain = $2', [valueOf(4), 'changed']);
    expect(await readPeople(EncryptedPerson)).toEqual(everyValue);
    expect(await moving.move(wanted)).toMatchObject({ state: 'succeeded', fields_stale: 0, failures: [] });
    expect(await envelopes()).toEqual([{ envelopes: 0 }]);
    const [statement] = await writeVerificationSql(moving.context, { keyring: undefined, target: table });
    expect(statement?.key).toBe('plaintext');
    expect(await moving.shop.query(statement?.sql ?? '')).toEqual([{ cells: String(rows), stale: '0' }]);
    expect(await moving.readAll(place)).toEqual(everyValue);
    expect(await moving.finalize(place)).toMatchObject({ state: 'left', cells: rows });
    const listed = (await listTargetListings(moving.context)).flatMap((one) => one.columns.map(({ name }) => name));
    expect(listed).not.toContain(column);
    for (const entity of [EncryptedPerson, PlainPerson]) expect(await readPeople(entity)).toEqual(everyValue);
    // An application that runs on goes on in the form that the column has now.
    expect(await opened.encrypt({ pk: 1 }, valueOf(1))).not.toMatch(/^kt1\./);
  });

  test('plaintext that begins like an envelope is refused to a column that leaves for plaintext', async () => {
    await expect(moving.app.column('person', 'plain').encrypt({ pk: 1 }, 'kt1.anything')).rejects.toThrow(
      refusal('VALUE_INVALID', /begins like an envelope/),
    );
  });
});
