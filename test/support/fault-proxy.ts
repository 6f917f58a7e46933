// A TCP proxy on loopback that spoils a connection on demand: answers come late, connections are cut, or their other end
// is lost without a word (half open).
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';

export interface FaultProxy {
  /** The given address, through the proxy. */
  readonly url: string;
  /** Every piece of data waits for so long, in both directions. */
  slowDown(delayMs: number): void;
  /** Ends every connection and refuses new ones. */
  cut(): void;
  /** Swallows what is sent from now on, on every connection there is; new ones find nobody. */
  loseSilently(): void;
  /** New connections work again; what was lost stays lost. */
  heal(): void;
  close(): Promise<void>;
}

type Way = 'open' | 'refused' | 'silent';

export async function startFaultProxy(targetUrl: string): Promise<FaultProxy> {
  const target = new URL(targetUrl);
  const sockets = new Set<Socket>();
  const silenced = new Set<Socket>();
  let way: Way = 'open';
  let delayMs = 0;

  const pass = (from: Socket, to: Socket): void => {
    from.on('data', (chunk) => {
      const send = (): void => {
        if (silenced.has(from) || to.destroyed) return;
        to.write(chunk);
      };
      // Timers of equal length fire in the order they were set, so the bytes stay in order.
      if (delayMs === 0) send();
      else setTimeout(send, delayMs);
    });
    from.on('close', () => {
      sockets.delete(from);
      if (!silenced.has(from)) to.destroy();
    });
    from.on('error', () => undefined);
    sockets.add(from);
  };
  const server = createServer((client) => {
    if (way !== 'open') {
      client.on('error', () => undefined);
      if (way === 'refused') client.destroy();
      else {
        sockets.add(client);
        silenced.add(client);
      }
      return;
    }
    const upstream = connect({ host: target.hostname, port: Number(target.port || 5432) });
    pass(client, upstream);
    pass(upstream, client);
  });
  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve);
  });
  const url = new URL(targetUrl);
  url.hostname = '127.0.0.1';
  url.port = String((server.address() as AddressInfo).port);
  const destroyAll = (): void => {
    for (const socket of sockets) socket.destroy();
  };
  return {
    url: url.href,
    slowDown(milliseconds) {
      delayMs = milliseconds;
    },
    cut() {
      way = 'refused';
      destroyAll();
    },
    loseSilently() {
      way = 'silent';
      for (const socket of sockets) silenced.add(socket);
    },
    heal() {
      way = 'open';
      delayMs = 0;
    },
    async close() {
      destroyAll();
      await new Promise((resolve) => {
        server.close(resolve);
      });
    },
  };
}
