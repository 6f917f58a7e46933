// A file system whose n-th operation fails, half a write written before it. What came before it really happened.
import { nodeFileSystem, type FileSystem } from '../../src/keys/durable-file.js';

export interface FailingFiles {
  readonly files: FileSystem;
  /** Operations that were asked for, the failed one included. */
  readonly asked: () => number;
}

/** Counts from 1; `code`: as the operating system says it. */
export function failFileAt(nth: number, code = 'EIO'): FailingFiles {
  let asked = 0;
  const count = (): void => {
    asked++;
    if (asked === nth) throw Object.assign(new Error('the disk'), { code });
  };
  return {
    asked: () => asked,
    files: {
      look: async (name) => (count(), nodeFileSystem.look(name)),
      list: async (name) => (count(), nodeFileSystem.list(name)),
      async create(name) {
        count();
        const file = await nodeFileSystem.create(name);
        return {
          async write(content, from) {
            const half = from + Math.ceil((content.length - from) / 2);
            const written = await file.write(content.subarray(0, half), from);
            count();
            return written;
          },
          sync: async () => (count(), file.sync()),
          async close() {
            await file.close();
            count();
          },
        };
      },
      rename: async (from, to) => (count(), nodeFileSystem.rename(from, to)),
      syncFolder: async (name) => (count(), nodeFileSystem.syncFolder(name)),
      read: async (name) => (count(), nodeFileSystem.read(name)),
      remove: async (name) => (count(), nodeFileSystem.remove(name)),
    },
  };
}
