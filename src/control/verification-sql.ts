// `verify --sql`: the statements that count, per column, the cells that do not name the active key. For people who want to
// run the check themselves, with their own client; needs no key material.
import { formatIn } from '../engine/cells-of-target.js';
import { KeyturnError } from '../errors.js';
import { keyTitle } from '../keys/keyring.js';
import { targetTitle } from '../rotation/target.js';
import { cellExpression } from '../store/cells.js';
import { quoteIdentifier } from '../store/database.js';
import { getKeyring } from '../store/keys.js';
import { listTargets } from '../store/registry.js';
import type { ControlContext } from './context.js';
import { chooseKeyring } from './keys.js';
import { findTarget } from './runs.js';

export interface VerificationStatement {
  readonly target: string;
  readonly column: string;
  /** The active key, which every cell should name; in a column that leaves, the foreign format. */
  readonly key: string;
  readonly sql: string;
}

/** One statement per column of the targets asked for; both undefined means every target of every keyring. */
export async function writeVerificationSql(
  context: ControlContext,
  choice: { keyring: string | undefined; target: string | undefined },
): Promise<readonly VerificationStatement[]> {
  const { database } = context;
  await context.loadFormats();
  const keyringName = choice.keyring === undefined ? undefined : (await chooseKeyring(database, choice.keyring)).name;
  const targets =
    choice.target === undefined ? await listTargets(database) : [await findTarget(context, choice.target)];
  const statements: VerificationStatement[] = [];
  for (const target of targets) {
    if (keyringName !== undefined && target.keyringName !== keyringName) continue;
    const keyring = await getKeyring(database, target.keyringName);
    const active = keyring.keys.find((key) => key.state === 'active');
    if (active === undefined)
      throw new KeyturnError(
        'KEY_STATE_REFUSED',
        `keyring ${keyring.name} has no active key; run: keyturn key activate`,
        { keyring: keyring.name },
      );
    for (const column of target.columns) {
      const cell = cellExpression(column);
      const format = formatIn(keyring, target, column);
      const namesKey = format.sqlNamesKey(cell, column.sqlType === 'bytea' ? 'bytes' : 'text', {
        ...active,
        id: format.writeKeyId ?? active.id,
      });
      const table = `${quoteIdentifier(target.schema)}.${quoteIdentifier(target.table)}`;
      statements.push({
        target: targetTitle(target),
        column: column.name,
        key: format.writeKeyId === undefined ? keyTitle(keyring.name, active) : String(format.writeKeyId),
        sql: `SELECT count(*) AS cells, count(*) FILTER (WHERE NOT ${namesKey}) AS stale FROM ${table} t WHERE ${cell} IS NOT NULL`,
      });
    }
  }
  if (statements.length > 0) return statements;
  throw new KeyturnError('TARGET_NOT_FOUND', 'there is no target to verify; see: keyturn target list');
}
