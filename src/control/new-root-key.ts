// A new root key that comes in as bytes, not as the name of a place: it is checked as any other and written durably to the
// private file that --to names, so that every process can be given the same place. Errors never show it (I7).
import { createRootKey } from '../crypto/root-key.js';
import type { Secret } from '../crypto/secret.js';
import { isKeyturnError, KeyturnError } from '../errors.js';
import { writeDurably } from '../keys/durable-file.js';
import { demandRandomLooking, parseHexKey } from '../keys/roots/key-bytes.js';
import type { RootKey } from '../keys/roots/root-key.js';
import { getClusterId } from '../store/keys.js';
import { listRoots } from '../store/roots.js';
import { filesOf, type ControlContext } from './context.js';

/**
 * Writes 64 hexadecimal digits to a new file of mode 0600; the same key in that file already is left as it is. Throws USAGE
 * for a place that is no file, ROOT_KEY_REFUSED for bytes that are no key, ROOT_CHANGE_REFUSED for the present root key,
 * FILE_UNAVAILABLE.
 */
export async function placeNewRootKey(context: ControlContext, to: string, given: Secret): Promise<void> {
  const [, path] = /^file:(.+)$/s.exec(to) ?? [];
  if (path === undefined)
    throw new KeyturnError(
      'USAGE',
      'a new root key that is given as bytes is written to a file; say which with --to file:PATH',
    );
  const digits = Buffer.from(given.expose().trim(), 'utf8');
  const content = Buffer.alloc(digits.length + 1, '\n');
  try {
    digits.copy(content);
    const bytes = parseHexKey(digits, 'the new key');
    demandRandomLooking(bytes, 'the new key');
    const cluster = await getClusterId(context.database);
    const { fingerprint } = createRootKey(bytes, cluster);
    const there = await findAt(context, to, cluster);
    if (there?.fingerprint.equals(fingerprint) === true) return;
    if (there !== undefined)
      throw new KeyturnError(
        'ROOT_CHANGE_REFUSED',
        `${to} holds another root key (${there.shortFingerprint}), and is not written over; say another place with --to file:PATH`,
      );
    const known = (await listRoots(context.database)).find(
      (root) => root.wraps > 0 && root.fingerprint.equals(fingerprint),
    );
    if (known !== undefined)
      throw new KeyturnError(
        'ROOT_CHANGE_REFUSED',
        `the new key is root key ${known.id} already, which is in use at ${known.uri}; nothing was written; make a new one with: openssl rand -hex 32`,
        { rootId: known.id },
      );
    await writeDurably({ path, content, force: false }, filesOf(context));
  } finally {
    digits.fill(0);
    content.fill(0);
  }
}

/** The root key that is in that place by now, as after a command that was cut short or had succeeded. */
async function findAt(context: ControlContext, uri: string, cluster: string): Promise<RootKey | undefined> {
  try {
    return (await context.openRoots([uri], cluster))[0];
  } catch (error) {
    if (isKeyturnError(error, 'ROOT_KEY_UNAVAILABLE')) return undefined;
    throw error;
  }
}
