// What follows a leaked root key, with statement 1, 2, … failing: the audit key and the active key are replaced by such as the
// leaked root never wrapped, each step whole or not at all, and the repeated command makes none of them twice.
import { randomBytes, randomUUID } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { replaceExposedKeys } from '../../src/control/replace-exposed.js';
import { rotateRoot } from '../../src/control/roots.js';
import type { FailingVerb } from './failing-verbs.js';
import type { Shop } from './shop.js';

/** Keys since the one that was active, with the audit key that makes seals; what `verb` recorded, in its order. */
async function look(shop: Shop, about: string): Promise<string> {
  const [leaked, firstKey, record] = about.split(':');
  const rows = await shop.query(
    `SELECT CASE purpose WHEN 3 THEN 'audit ' ELSE '' END || state || CASE WHEN compromised THEN '!' ELSE '' END
       || CASE WHEN ordered_at IS NOT NULL AND state = 'staged' THEN ' (ordered)' ELSE '' END
       || CASE WHEN $1 = ANY(wrapped_under) THEN ' exposed' ELSE '' END AS words
     FROM keyturn.data_key WHERE (purpose = 1 AND id >= $2) OR (purpose = 3 AND state = 'active') ORDER BY purpose, version`,
    [leaked, firstKey],
  );
  const records = await shop.query(`SELECT action FROM keyturn.audit WHERE id > $1 ORDER BY id`, [record]);
  const list = (of: readonly Record<string, unknown>[]): string => of.flatMap(Object.values).join(', ');
  return `${list(rows)}: ${list(records)}`;
}

/** What each of its transactions adds, keys and records; the standby from before is never the one that is activated. */
const steps: readonly (readonly [keys: string, records: readonly string[]])[] = [
  ['active exposed, staged exposed, audit active exposed', []],
  ['active exposed, staged exposed, audit active exposed', ['root.suspect']],
  ['active exposed, staged exposed, audit active', ['audit-key.replace']],
  ['active exposed, destroyed exposed, staged (ordered), audit active', ['key.discard', 'key.stage', 'key.order']],
  ['decrypt_only! exposed, destroyed exposed, active, audit active', ['key.replace', 'key.activate', 'key.compromise']],
  ['decrypt_only! exposed, destroyed exposed, active, staged, audit active', ['key.stage']],
];

/** The root key was changed before anybody knew of the leak. `folder`: for the root keys, one after the other. */
export function failingCascade(folder: string): FailingVerb {
  return {
    verb: 'the replacement of what a leaked root key wrapped',
    async prepare(shop) {
      const path = join(folder, `${randomUUID()}.key`);
      writeFileSync(path, randomBytes(32), { mode: 0o600 });
      const [before] = await shop.query(
        `SELECT k.id::int AS key, w.root_key_id::int AS root FROM keyturn.data_key k
         JOIN keyturn.data_key_wrap w ON w.data_key_id = k.id WHERE k.purpose = 1 AND k.state = 'active'`,
      );
      await rotateRoot(shop.control.context, { to: `file:${path}`, keyring: undefined, without: [], reason: 'yearly' });
      const [last] = await shop.query('SELECT max(id)::int AS record FROM keyturn.audit');
      return [before?.['root'], before?.['key'], last?.['record']].join(':');
    },
    run: (context) => replaceExposedKeys(context, { keyrings: ['customers'], reason: 'leaked' }),
    look,
    stages: steps.map(
      ([keys], at) =>
        `${keys}: ${steps
          .slice(0, at + 1)
          .flatMap(([, records]) => records)
          .join(', ')}`,
    ),
    isRepeatable: true,
  };
}
