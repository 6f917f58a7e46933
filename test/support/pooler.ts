// Stands in for a connection pooler: passes bytes on and, as poolers do, announces a process id of its own in place of the
// server's, because the cancel keys that clients get are its own.
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';

export interface Pooler {
  readonly url: string;
  close(): Promise<void>;
}

const backendKeyData = 'K'.charCodeAt(0);
const ownProcessId = 99_999_999;

export async function startPooler(databaseUrl: string): Promise<Pooler> {
  const target = new URL(databaseUrl);
  const sockets = new Set<Socket>();
  const server = createServer((client) => {
    const upstream = connect({ host: target.hostname, port: Number(target.port || 5432) });
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.on('error', () => undefined);
      socket.on('close', () => {
        client.destroy();
        upstream.destroy();
      });
    }
    client.on('data', (bytes) => upstream.write(bytes));
    const rewrite = announceOwnProcessId();
    upstream.on('data', (bytes) => client.write(rewrite(bytes)));
  });
  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve);
  });
  const url = new URL(databaseUrl);
  url.hostname = '127.0.0.1';
  url.port = String((server.address() as AddressInfo).port);
  return {
    url: url.href,
    async close() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => {
        server.close(resolve);
      });
    },
  };
}

/** Rewrites the one BackendKeyData message of a connection; whole messages are assumed to arrive together. */
function announceOwnProcessId(): (bytes: Buffer) => Buffer {
  let isDone = false;
  return (bytes) => {
    for (let at = 0; !isDone && at + 5 <= bytes.length; at += 1 + bytes.readInt32BE(at + 1)) {
      if (bytes[at] !== backendKeyData) continue;
      bytes.writeInt32BE(ownProcessId, at + 5);
      isDone = true;
    }
    return bytes;
  };
}
