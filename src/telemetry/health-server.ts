// The small server beside a worker or a supervisor: alive, ready, metrics. It answers GET and HEAD on three paths and nothing
// else, to whoever can reach it, so it tells names and numbers only: no reasons, no secrets.
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { KeyturnError } from '../errors.js';

export interface HealthSource {
  /** The process does its work, or could if what it needs were there. */
  isAlive(): boolean;
  /** Names of what it needs and does not have; none when it is ready. */
  findMissing(): Promise<readonly string[]>;
  readonly metrics: { readonly contentType: string; text(): Promise<string> };
}

export interface Listening {
  readonly host: string;
  /** 0 for any free one. */
  readonly port: number;
}

export interface HealthServer {
  /** `http://host:port`, as bound. */
  readonly url: string;
  /** Safe twice. */
  close(): Promise<void>;
}

export const healthPaths = ['/healthz', '/readyz', '/metrics'] as const;

const limits = {
  headersTimeout: 10_000,
  requestTimeout: 10_000,
  keepAliveTimeout: 5_000,
  maxHeaderSize: 16_384,
  connectionsCheckingInterval: 1_000,
} as const;
const maxConnections = 64;

/** Throws CONFIG_INVALID when the port is taken or the host is none of this machine's. */
export async function startHealthServer(listening: Listening, source: HealthSource): Promise<HealthServer> {
  const server = createServer(limits, (request, response) => void answer(source, request, response));
  server.maxConnections = maxConnections;
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => reject(notListening(listening, error.code)));
    server.listen(listening.port, listening.host, resolve);
  });
  // A connection that fails while it is accepted is its client's trouble.
  server.on('error', () => undefined);
  const { port } = server.address() as AddressInfo;
  let closed: Promise<void> | undefined;
  return {
    url: `http://${listening.host.includes(':') ? `[${listening.host}]` : listening.host}:${port}`,
    close() {
      closed ??= new Promise<void>((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      });
      return closed;
    },
  };
}

function notListening({ host, port }: Listening, code: string | undefined): KeyturnError {
  return new KeyturnError(
    'CONFIG_INVALID',
    `cannot listen on ${host} port ${port} (${code ?? 'no reason'}); choose another with --host and --port, or HOST and PORT`,
    { source: 'PORT' },
  );
}

interface Answer {
  readonly status: number;
  readonly type: string;
  readonly body: string;
}

async function answer(source: HealthSource, request: IncomingMessage, response: ServerResponse): Promise<void> {
  let made: Answer;
  try {
    made = await answerTo(source, request);
  } catch {
    // What went wrong is in the log; whoever asks here learns that it did.
    made = json(500, { error: 'failed' });
  }
  response.writeHead(made.status, {
    'content-type': made.type,
    'content-length': Buffer.byteLength(made.body),
    'cache-control': 'no-store',
    'x-content-type-options': 'nosniff',
    ...(made.status === 405 ? { allow: 'GET, HEAD' } : {}),
  });
  response.end(request.method === 'HEAD' ? undefined : made.body);
}

async function answerTo(source: HealthSource, request: IncomingMessage): Promise<Answer> {
  const path = (request.url ?? '').split('?', 1)[0];
  const known = healthPaths.find((candidate) => candidate === path);
  if (known === undefined) return json(404, { error: 'not found' });
  if (request.method !== 'GET' && request.method !== 'HEAD') return json(405, { error: 'method not allowed' });
  if (known === '/healthz') return source.isAlive() ? json(200, { status: 'alive' }) : json(503, { status: 'stuck' });
  if (known === '/readyz') {
    const missing = await source.findMissing();
    return json(missing.length === 0 ? 200 : 503, { ready: missing.length === 0, missing });
  }
  return { status: 200, type: source.metrics.contentType, body: await source.metrics.text() };
}

function json(status: number, body: object): Answer {
  return { status, type: 'application/json; charset=utf-8', body: `${JSON.stringify(body)}\n` };
}
