// Writes a file durably and kills itself at a chosen point. Arguments: path, content, point.
import { nodeFileSystem, writeDurably, type FileSystem } from '../../src/keys/durable-file.js';

const [path = '', content = '', point] = process.argv.slice(2);

function reach(at: string): void {
  if (at === point) process.kill(process.pid, 'SIGKILL');
}

const files: FileSystem = {
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

await writeDurably({ path, content: Buffer.from(content), force: true }, files);
