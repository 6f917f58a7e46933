// A file system that ends its process with SIGKILL at a named point of a durable write.
import { nodeFileSystem, type FileSystem } from '../../src/keys/durable-file.js';

export const filePoints = ['backup.tmp', 'backup.write', 'backup.fsync', 'backup.rename', 'backup.dirsync'] as const;

export function killFilesAt(point: string | undefined): FileSystem {
  const reach = (at: (typeof filePoints)[number]): void => {
    if (at === point) process.kill(process.pid, 'SIGKILL');
  };
  return {
    ...nodeFileSystem,
    async create(name) {
      const file = await nodeFileSystem.create(name);
      reach('backup.tmp');
      return {
        async write(bytes, from) {
          const written = await file.write(bytes.subarray(0, from + 5), from);
          reach('backup.write');
          return written;
        },
        async sync() {
          await file.sync();
          reach('backup.fsync');
        },
        close: () => file.close(),
      };
    },
    async rename(from, to) {
      await nodeFileSystem.rename(from, to);
      reach('backup.rename');
    },
    async syncFolder(folder) {
      await nodeFileSystem.syncFolder(folder);
      reach('backup.dirsync');
    },
  };
}
