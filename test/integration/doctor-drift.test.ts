// doctor: tables that changed after they were registered.
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openControl } from '../../src/app.js';
import type { ConfigFile } from '../../src/config.js';
import { examineEverything } from '../../src/control/doctor.js';
import { orderRun } from '../../src/control/runs.js';
import { readStatus } from '../../src/control/status.js';
import type { Finding } from '../../src/engine/preflight.js';
import { rest } from '../support/findings.js';
import { openShop, type Shop } from '../support/shop.js';

const email = { columns: { email: {} } };

describe('targets that changed after they were registered', () => {
  let shop: Shop;
  let drifted: readonly Finding[];

  const drifts: readonly {
    table: string;
    ddl: string;
    level: Finding['level'];
    check: string;
    subject: string;
    reason: RegExp;
    remedy: RegExp;
  }[] = [
    {
      table: 'lost_column',
      ddl: 'ALTER TABLE lost_column DROP COLUMN email',
      level: 'refuse',
      check: 'column',
      subject: 'public.lost_column.email',
      reason: /the table has no column "email"/,
      remedy: /check the name/,
    },
    {
      table: 'other_type',
      ddl: 'ALTER TABLE other_type ALTER COLUMN email TYPE char(300)',
      level: 'refuse',
      check: 'column type',
      subject: 'public.other_type.email',
      reason: /character holds no envelopes/,
      remedy: /use text/,
    },
    {
      table: 'lost_key',
      ddl: 'ALTER TABLE lost_key DROP CONSTRAINT lost_key_pkey',
      level: 'refuse',
      check: 'primary key',
      subject: 'public.lost_key',
      reason: /it has no primary key/,
      remedy: /ADD COLUMN/,
    },
    {
      table: 'other_key',
      ddl: 'ALTER TABLE other_key DROP CONSTRAINT other_key_pkey, ADD PRIMARY KEY (number)',
      level: 'refuse',
      check: 'binding',
      subject: 'public.other_key',
      reason: /its primary key is not the one it was registered with/,
      remedy: /change it back/,
    },
    {
      table: 'other_kind',
      ddl: 'ALTER TABLE other_kind ALTER COLUMN id TYPE text',
      level: 'refuse',
      check: 'binding',
      subject: 'public.other_kind',
      reason: /its primary key is not the one it was registered with/,
      remedy: /change it back/,
    },
    {
      table: 'made_anew',
      ddl: 'DROP TABLE made_anew; CREATE TABLE made_anew (id int PRIMARY KEY, number int, email text)',
      level: 'refuse',
      check: 'table',
      subject: 'public.made_anew',
      reason: /was created anew since it was registered, so a run would pass its rows over/,
      remedy: /^keyturn init$/,
    },
    {
      table: 'dropped',
      ddl: 'DROP TABLE dropped',
      level: 'warn',
      check: 'table',
      subject: 'public.dropped',
      reason: /its table was dropped/,
      remedy: /^keyturn target rename public.dropped NEW/,
    },
  ];
  const config: ConfigFile = {
    keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' } },
    targets: ['untouched', ...drifts.map(({ table }) => table)].map((table) => ({
      table,
      keyring: 'customers',
      ...email,
    })),
  };

  beforeAll(async () => {
    shop = await openShop({
      config,
      ddl: (config.targets ?? []).map(
        ({ table }) => `CREATE TABLE ${table} (id int PRIMARY KEY, number int NOT NULL, email text)`,
      ),
    });
    for (const { ddl } of drifts) await shop.query(ddl);
    drifted = await examineEverything(shop.control.context);
  });

  afterAll(() => shop.close());

  for (const { table, ...finding } of drifts) {
    test(`${table}: ${finding.level} ${finding.check}`, () => {
      const about = rest(drifted).filter(({ subject }) => subject.startsWith(`public.${table}`));
      expect(about).toHaveLength(1);
      expect(about[0]).toMatchObject({
        level: finding.level,
        check: finding.check,
        subject: finding.subject,
        reason: expect.stringMatching(finding.reason) as string,
        remedy: expect.stringMatching(finding.remedy) as string,
      });
    });
  }

  test('a run over the keyring is refused with all of those reasons, none of its tables passed over', async () => {
    const order = orderRun(shop.control.context, {
      kind: 'reencrypt',
      keyring: undefined,
      target: undefined,
      scope: undefined,
      deep: false,
      reason: undefined,
    });
    const error: unknown = await order.catch((thrown: unknown) => thrown);
    const subjects = drifts.filter(({ level }) => level === 'refuse').map(({ subject }) => subject);
    expect(error).toMatchObject({
      code: 'PREFLIGHT_REFUSED',
      details: { subjects: expect.arrayContaining(subjects) as string[] },
    });
    expect(await shop.query('SELECT FROM keyturn.run')).toEqual([]);
  });

  test('status goes on answering', async () => {
    const { keyrings } = await readStatus(shop.control.context);
    expect(keyrings).toMatchObject([{ keyring: 'customers', targets: drifts.length + 1 }]);
  });

  test('a column that the file adds to a registered target is examined before init sees it', async () => {
    const file: ConfigFile = {
      ...config,
      targets: [{ table: 'untouched', keyring: 'customers', columns: { email: {}, number: {} } }],
    };
    const control = openControl({ environment: shop.environment(), file });
    const findings = await examineEverything(control.context).finally(control.close);
    expect(rest(findings).filter(({ subject }) => subject.startsWith('public.untouched'))).toEqual([
      {
        level: 'refuse',
        check: 'column type',
        subject: 'public.untouched.number',
        reason: 'integer holds no envelopes',
        remedy: 'use text, varchar, bytea, or jsonb with paths',
      },
    ]);
  });
});
