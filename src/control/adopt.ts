// The operator's verbs that bring a column into Keyturn's format from a foreign one, and out of it again: begin (readers
// accept both, writers write the new), move (a run like any other), finalize (a scan, and the old form is refused).
import { getForeignFormat } from '../engine/foreign-keys.js';
import { formatIn, formatOf, storageOf } from '../engine/cells-of-target.js';
import { waitForOlderTransactions } from '../engine/retire.js';
import { KeyturnError } from '../errors.js';
import { foreignKeyId, type ForeignColumn, type StoredKeyring } from '../keys/key-store.js';
import { isForeignSecretUri } from '../keys/foreign-secret.js';
import type { RunKind } from '../rotation/run.js';
import { targetTitle, type Target, type TargetColumn } from '../rotation/target.js';
import { cellExpression, createCellStore } from '../store/cells.js';
import { endMove, setMove } from '../store/column-moves.js';
import { quoteIdentifier, readOnlySnapshot, type Queryable } from '../store/database.js';
import { getKeyring, lockKeyring } from '../store/keys.js';
import { listUnfinishedRuns } from '../store/runs.js';
import { patienceOf, type ControlContext } from './context.js';
import { converge } from './keys.js';
import { beginReencrypt, refusePaused, type BegunRun, type RunnerSupply } from './rotate-and-reencrypt.js';
import { findTarget, showRun } from './runs.js';

export interface ColumnName {
  /** `schema.table` or `table`. */
  readonly target: string;
  /** Its name in the registry: `email`, `profile.ssn`. */
  readonly column: string;
}

export interface MoveRequest extends ColumnName {
  readonly move: ForeignColumn['move'];
  readonly format: string;
  readonly secretUri: string | undefined;
  readonly reason: string | undefined;
}

export interface MoveReport {
  readonly target: string;
  readonly column: string;
  readonly move: ForeignColumn['move'];
  readonly foreign_format: string;
  /** False: it was on this way already. */
  readonly is_new: boolean;
}

/**
 * Lets every live member read both forms and write the one the column goes to; no row is touched. Repeating it goes on
 * where an earlier attempt stopped. Throws COLUMN_MOVE_REFUSED, MEMBER_BEHIND.
 */
export async function prepareMove(context: ControlContext, request: MoveRequest): Promise<MoveReport> {
  const { database } = context;
  await context.loadFormats();
  const { target, column, title } = await findColumn(context, request);
  const foreign = getForeignFormat(request.format);
  refuseWrongSecret(foreign, request.secretUri);
  if (!foreign.storages.includes(storageOf(column)))
    throw new KeyturnError(
      'COLUMN_MOVE_REFUSED',
      `format ${foreign.name} keeps its values in ${foreign.storages.map((storage) => (storage === 'text' ? 'text' : 'bytea')).join(' or ')}, and ${title} is ${column.sqlType}`,
      { column: title },
    );
  if (request.move === 'adopting') await refuseTooShort(database, target, column);
  const wanted = { move: request.move, format: request.format, secretUri: request.secretUri };
  const begun = await database.transaction(async (client) => {
    const keyring = await lockKeyring(client, target.keyringName);
    const now = moveOf(keyring, column);
    refuseOtherMove(title, now, wanted);
    if (now?.move === wanted.move) return { keyring, generation: keyring.generation, isNew: false };
    const generation = await setMove(client, keyring, { id: column.id, title }, wanted, request.reason);
    return { keyring, generation, isNew: true };
  });
  const written = wanted.move === 'adopting' ? 'keyturn' : wanted.format;
  await converge(
    context,
    begun.keyring,
    { generation: begun.generation, holdsForeignKeyId: foreignKeyId(wanted) },
    `reads ${wanted.format} beside keyturn in ${title} and writes ${written}`,
  );
  return {
    target: targetTitle(target),
    column: column.name,
    move: wanted.move,
    foreign_format: wanted.format,
    is_new: begun.isNew,
  };
}

/** The run that moves the rows; an unfinished one that began after the column was prepared is joined. */
export async function beginMove(
  context: ControlContext,
  request: MoveRequest & { readonly kind: Extract<RunKind, 'reencrypt' | 'dry_run'> },
  supply: RunnerSupply,
): Promise<BegunRun & { readonly prepared: MoveReport }> {
  await supply.require();
  const prepared = await prepareMove(context, request);
  const { target } = await findColumn(context, request);
  const keyring = await getKeyring(context.database, target.keyringName);
  const earlier = (await listUnfinishedRuns(context.database)).find(
    (run) =>
      run.kind === request.kind &&
      run.keyringId === keyring.id &&
      (run.targetId === undefined || run.targetId === target.id) &&
      run.scope === undefined &&
      run.state !== 'cancelling' &&
      run.generation >= keyring.generation,
  );
  if (earlier !== undefined) {
    refusePaused(earlier);
    await supply.start();
    return { begin: 'joined', report: await showRun(context, earlier.id), prepared };
  }
  const begun = await beginReencrypt(
    context,
    {
      kind: request.kind,
      keyring: keyring.name,
      target: targetTitle(target),
      scope: undefined,
      deep: false,
      reason: request.reason,
    },
    { require: async () => undefined, start: () => supply.start() },
  );
  return { ...begun, prepared };
}

export interface FinalizeReport {
  readonly target: string;
  readonly column: string;
  /** `adopted`: the foreign form is refused. `left`: the column is no longer registered. */
  readonly state: 'adopted' | 'left';
  readonly foreign_format: string;
  readonly cells: number;
}

/** Ends the way once a scan found nothing of the old form. Throws COLUMN_MOVE_REFUSED with the count of what is left. */
export async function finalizeMove(
  context: ControlContext,
  request: ColumnName & { readonly reason: string | undefined },
): Promise<FinalizeReport> {
  const { database, onProgress } = context;
  await context.loadFormats();
  const { target, column, title } = await findColumn(context, request);
  const keyring = await getKeyring(database, target.keyringName);
  const move = moveOf(keyring, column);
  if (move === undefined)
    throw new KeyturnError(
      'COLUMN_MOVE_REFUSED',
      `column ${title} is not on its way between two formats; see: keyturn target list`,
      { column: title },
    );
  await converge(
    context,
    keyring,
    { generation: keyring.generation, holdsForeignKeyId: foreignKeyId(move) },
    `knows that ${title} is ${move.move}`,
  );
  await waitForOlderTransactions(database, {
    onProgress,
    olderTransactionsMs: patienceOf(context).patienceMs,
  });
  onProgress(`scanning ${title}`);
  const { cells, others } = await database.transaction(
    (client) => countOfOldForm(client, keyring, target, column),
    `${readOnlySnapshot}; SET LOCAL row_security = off`,
  );
  if (others > 0)
    throw new KeyturnError(
      'COLUMN_MOVE_REFUSED',
      `${others} of ${cells} cells of ${title} are still in the old form; move them by repeating keyturn adopt without --finalize, and end whatever writes them`,
      { column: title, left: others },
    );
  await database.transaction(async (client) => {
    const locked = await lockKeyring(client, keyring.name);
    if (JSON.stringify(moveOf(locked, column)) !== JSON.stringify(move))
      throw new KeyturnError('COLUMN_MOVE_REFUSED', `column ${title} was sent another way meanwhile; look again`, {
        column: title,
      });
    await endMove(client, locked, { id: column.id, title }, { ...move, cells }, request.reason);
  });
  return {
    target: targetTitle(target),
    column: column.name,
    state: move.move === 'adopting' ? 'adopted' : 'left',
    foreign_format: move.format,
    cells,
  };
}

async function findColumn(
  context: ControlContext,
  name: ColumnName,
): Promise<{ target: Target; column: TargetColumn; title: string }> {
  const target = await findTarget(context, name.target);
  const column = target.columns.find((candidate) => candidate.name === name.column);
  if (column !== undefined) return { target, column, title: `${targetTitle(target)}.${column.name}` };
  throw new KeyturnError(
    'TARGET_NOT_FOUND',
    `target ${targetTitle(target)} has no column "${name.column}"; it has: ${target.columns.map((candidate) => candidate.name).join(', ')}; list it in keyturn.yaml and run keyturn init`,
    { target: targetTitle(target) },
  );
}

function moveOf(keyring: StoredKeyring, column: Pick<TargetColumn, 'id'>): ForeignColumn | undefined {
  return keyring.foreign?.find(({ columnId }) => columnId === column.id);
}

function refuseWrongSecret(format: { name: string; secret: string | undefined }, uri: string | undefined): void {
  if (format.secret === undefined && uri !== undefined)
    throw new KeyturnError('USAGE', `format ${format.name} has no secret; leave --secret out`);
  if (format.secret !== undefined && (uri === undefined || !isForeignSecretUri(uri)))
    throw new KeyturnError(
      'USAGE',
      `format ${format.name} needs its secret: --secret env:NAME or --secret file:PATH, a place that holds ${format.secret}`,
    );
}

/** The way back is open under the same format and secret; any other would leave values that nobody reads. */
function refuseOtherMove(
  title: string,
  now: ForeignColumn | undefined,
  wanted: Pick<ForeignColumn, 'format' | 'secretUri'>,
): void {
  if (now === undefined || foreignKeyId(now) === foreignKeyId(wanted)) return;
  throw new KeyturnError(
    'COLUMN_MOVE_REFUSED',
    `column ${title} is ${now.move === 'adopting' ? 'being adopted from' : 'leaving to'} ${foreignKeyId(now)}; finish that with --finalize, or turn back with the same format and secret`,
    { column: title },
  );
}

/** A foreign value is at least as long as its plaintext, so what holds the longest as a plaintext holds all. */
async function refuseTooShort(database: Queryable, target: Target, column: TargetColumn): Promise<void> {
  if (column.maxLength === undefined) return;
  const { algorithm } = await getKeyring(database, target.keyringName);
  const table = `${quoteIdentifier(target.schema)}.${quoteIdentifier(target.table)}`;
  const own = formatOf(target, column);
  const { rows } = await database.query(
    `SELECT max(octet_length(${cellExpression(column)})) FROM ${table} t WHERE NOT ${own.sqlHasMagic(cellExpression(column), 'text')}`,
  );
  const needed = own.storedLength(Number(rows[0]?.[0] ?? 0), algorithm, 'text');
  if (needed <= column.maxLength) return;
  throw new KeyturnError(
    'COLUMN_MOVE_REFUSED',
    `${targetTitle(target)}.${column.name} holds ${column.maxLength} characters and an envelope of its longest value takes up to ${needed}; run: ALTER TABLE ${table} ALTER COLUMN ${quoteIdentifier(column.columnName)} TYPE text`,
    { column: column.name },
  );
}

async function countOfOldForm(
  client: Queryable,
  keyring: StoredKeyring,
  target: Target,
  column: TargetColumn,
): Promise<{ cells: number; others: number }> {
  const format = formatIn(keyring, target, column);
  const storage = storageOf(column);
  const { writeKeyId } = format;
  const keys =
    writeKeyId === undefined ? keyring.keys : keyring.keys.slice(0, 1).map((key) => ({ ...key, id: writeKeyId }));
  const isNewForm = (expression: string): string =>
    keys.map((key) => format.sqlNamesKey(expression, storage, key)).join(' OR ');
  const only = { ...target, columns: [column] };
  return createCellStore(only).countNot(client, { after: undefined, upto: undefined }, undefined, isNewForm);
}
