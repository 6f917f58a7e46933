// What doors ask before they use the other verbs: does the database have the schema that this version needs, are the given
// root keys the right ones, are processes that were just started members by now.
import { getKeyring, listKeyringNames } from '../store/keys.js';
import { listMembers } from '../store/members.js';
import { requireSchema } from '../store/schema.js';
import type { ControlContext } from './context.js';
import { openRootsOf } from './keys.js';

/** Throws NOT_INITIALIZED, SCHEMA_TOO_OLD, SCHEMA_TOO_NEW or DATABASE_UNAVAILABLE. */
export async function requireInitialized(context: ControlContext): Promise<void> {
  await requireSchema(context.database);
}

/** Throws MASTER_KEY_MISMATCH and its like for any keyring, as a worker would, and writes nothing. */
export async function requireRoots(context: ControlContext): Promise<void> {
  for (const name of await listKeyringNames(context.database)) {
    await openRootsOf(context, await getKeyring(context.database, name));
  }
}

/** Whether each of these processes of this host is a live member: it has opened its root keys and loaded its keyrings. */
export async function areMembers(
  context: ControlContext,
  processes: { readonly host: string; readonly pids: readonly number[] },
): Promise<boolean> {
  const members = await listMembers(context.database);
  return processes.pids.every((pid) =>
    members.some((member) => member.isLive && member.host === processes.host && member.pid === pid),
  );
}
