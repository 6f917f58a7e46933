// The very first init, with statement 1, 2, … failing, each on a database of its own.
import { randomBytes } from 'node:crypto';
import { expect, test } from 'vitest';
import { openControl, openKeyturn } from '../../src/app.js';
import type { Environment } from '../../src/config.js';
import { verifyAudit } from '../../src/control/audit.js';
import { init } from '../../src/control/init.js';
import { createTestDatabase } from '../support/database.js';
import { failAt } from '../support/failing-database.js';
import { outcomeOf } from '../support/outcome-of.js';
import { customerTable, shopConfig } from '../support/shop.js';

/** Answers how many statements were asked for, and how the first attempt ended. */
async function initFailingAt(nth: number): Promise<{ readonly asked: number; readonly end: string }> {
  const home = await createTestDatabase({ isMigrated: true });
  await home.pool.query(customerTable);
  const environment: Environment = {
    DATABASE_URL: home.url,
    KEYTURN_ROOT_KEY: randomBytes(32).toString('hex'),
    LOG_LEVEL: 'silent',
  };
  // As two commands, one after the other: a root key is read once and taken out of the environment.
  const open = () => openControl({ environment: { ...environment }, file: shopConfig });
  const failing = open();
  const { database, asked } = failAt(failing.context.database, nth);
  const end = await outcomeOf(() => init({ ...failing.context, database }));
  await failing.close();
  const { context, close } = open();
  const { keyrings, targets } = await init(context);
  expect([keyrings.length, targets.length]).toEqual([1, 1]);
  const states = await home.pool.query(
    `SELECT string_agg(k.state, ', ' ORDER BY k.version) AS keys, (SELECT count(*)::int FROM keyturn.cluster) AS clusters,
       (SELECT count(*)::int FROM keyturn.root_key) AS roots, (SELECT count(*)::int FROM keyturn.target) AS targets
     FROM keyturn.data_key k WHERE k.purpose = 1`,
  );
  expect(states.rows).toEqual([{ keys: 'active, staged', clusters: 1, roots: 1, targets: 1 }]);
  await expect(verifyAudit(context, undefined)).resolves.toMatchObject({ intact: true });
  const application = await openKeyturn({ config: shopConfig, environment: { ...environment }, name: 'first' });
  const email = application.column('customer', 'email');
  const stored = await email.encrypt({ pk: 1, scope: 'a' }, 'a@example.org');
  expect((await email.decrypt({ pk: 1, scope: 'a' }, stored)).plaintext.toString()).toBe('a@example.org');
  await application.close();
  await close();
  await home.drop();
  return { asked: asked(), end };
}

test('I6 I10 whichever statement of the very first init fails, init again ends with one cluster, one root, an active key and a standby', async () => {
  let nth = 1;
  for (; ; nth++) {
    const { asked, end } = await initFailingAt(nth);
    const isOver = asked < nth;
    expect({ nth, end }).toEqual({ nth, end: isOver ? 'done' : 'DATABASE_UNAVAILABLE' });
    if (isOver) break;
  }
  expect(nth).toBeGreaterThan(40);
});
