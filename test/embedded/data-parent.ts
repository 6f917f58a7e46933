// A folder of its own for the servers of one test, so that what is left in it can be counted.

import { chmodSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export interface DataParent {
  readonly path: string;
  list(): readonly string[];
  remove(): void;
}

export function makeDataParent(): DataParent {
  const path = mkdtempSync(join(tmpdir(), 'keyturn-embedded-test-'));
  // A server's account must be able to cross it.
  chmodSync(path, 0o755);
  return {
    path,
    list: () => readdirSync(path),
    remove: () => rmSync(path, { recursive: true, force: true }),
  };
}
