// A small HTTP server on the loopback address for fakes of key services: answers JSON requests, counts them, and misbehaves
// when told to.
import { createServer, type IncomingHttpHeaders } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface FakeRequest {
  readonly path: string;
  readonly headers: IncomingHttpHeaders;
  readonly body: Readonly<Record<string, unknown>>;
}

export interface FakeAnswer {
  readonly status: number;
  readonly body: object;
  readonly headers?: Readonly<Record<string, string>>;
}

export type Fault = FakeAnswer | 'hang' | 'reset';

export interface FaultyServer {
  readonly url: string;
  /** Requests that have arrived. */
  readonly requests: readonly FakeRequest[];
  /** Answers this instead, to every request or to the next ones only; undefined ends it. */
  fail(fault: Fault | undefined, times?: number): void;
  close(): Promise<void>;
}

export async function startFaultyServer(answer: (request: FakeRequest) => FakeAnswer): Promise<FaultyServer> {
  const requests: FakeRequest[] = [];
  let fault: Fault | undefined;
  let left = 0;
  const server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => {
      const asked: FakeRequest = {
        path: request.url ?? '',
        headers: request.headers,
        body: JSON.parse(Buffer.concat(chunks).toString('utf8')) as Record<string, unknown>,
      };
      requests.push(asked);
      const isFaulty = fault !== undefined && left-- > 0;
      if (isFaulty && fault === 'hang') return;
      if (isFaulty && fault === 'reset') {
        request.socket.destroy();
        return;
      }
      const { status, body, headers = {} } = isFaulty && typeof fault === 'object' ? fault : answer(asked);
      response.writeHead(status, { 'content-type': 'application/json', ...headers }).end(JSON.stringify(body));
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests,
    fail(next, times = Infinity) {
      fault = next;
      left = times;
    },
    async close() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
