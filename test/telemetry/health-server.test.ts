import { createServer, connect, type Server } from 'node:net';
import { once } from 'node:events';
import { afterEach, describe, expect, test } from 'vitest';
import { startHealthServer, type HealthServer, type HealthSource } from '../../src/telemetry/health-server.js';

const anyPort = { host: '127.0.0.1', port: 0 };
const well: HealthSource = {
  isAlive: () => true,
  findMissing: async () => [],
  metrics: { contentType: 'text/plain; version=0.0.4; charset=utf-8', text: async () => 'a 1\n' },
};

const open: HealthServer[] = [];
afterEach(async () => {
  await Promise.all(open.splice(0).map((server) => server.close()));
});

async function start(source: Partial<HealthSource> = {}): Promise<string> {
  const server = await startHealthServer(anyPort, { ...well, ...source });
  open.push(server);
  return server.url;
}

async function get(url: string, method = 'GET'): Promise<{ status: number; body: string; headers: Headers }> {
  const response = await fetch(url, { method });
  return { status: response.status, body: await response.text(), headers: response.headers };
}

describe('the health server', () => {
  test('says alive, ready and the metrics when all is well', async () => {
    const url = await start();
    expect(await get(`${url}/healthz`)).toMatchObject({ status: 200, body: '{"status":"alive"}\n' });
    expect(await get(`${url}/readyz`)).toMatchObject({ status: 200, body: '{"ready":true,"missing":[]}\n' });
    const metrics = await get(`${url}/metrics?from=prometheus`);
    expect(metrics).toMatchObject({ status: 200, body: 'a 1\n' });
    expect(metrics.headers.get('content-type')).toBe('text/plain; version=0.0.4; charset=utf-8');
  });

  test('answers 503 without a reason when stuck, and names what is missing when not ready', async () => {
    const url = await start({ isAlive: () => false, findMissing: async () => ['database', 'queue'] });
    expect(await get(`${url}/healthz`)).toMatchObject({ status: 503, body: '{"status":"stuck"}\n' });
    expect(await get(`${url}/readyz`)).toMatchObject({
      status: 503,
      body: '{"ready":false,"missing":["database","queue"]}\n',
    });
  });

  test('answers HEAD like GET without a body', async () => {
    const url = await start();
    const answer = await get(`${url}/readyz`, 'HEAD');
    expect(answer).toMatchObject({ status: 200, body: '' });
    expect(answer.headers.get('content-length')).toBe('28');
  });

  test('knows no other path and no other method', async () => {
    const url = await start();
    for (const path of ['/', '/healthz/', '/metrics/../etc', '/%2e%2e', '//metrics'])
      expect(await get(`${url}${path}`)).toMatchObject({ status: 404 });
    for (const method of ['POST', 'PUT', 'DELETE', 'OPTIONS', 'PATCH']) {
      const answer = await get(`${url}/metrics`, method);
      expect(answer).toMatchObject({ status: 405, body: '{"error":"method not allowed"}\n' });
      expect(answer.headers.get('allow')).toBe('GET, HEAD');
    }
  });

  test('I7 tells nothing of an error that a source throws', async () => {
    const failing = async (): Promise<never> => {
      throw new Error('postgres://user:password@host');
    };
    const url = await start({ findMissing: failing, metrics: { contentType: 'text/plain', text: failing } });
    for (const path of ['/readyz', '/metrics'])
      expect(await get(`${url}${path}`)).toMatchObject({ status: 500, body: '{"error":"failed"}\n' });
  });

  test('refuses headers over 16 KiB', async () => {
    const url = await start();
    const response = await fetch(`${url}/healthz`, { headers: { 'x-long': 'x'.repeat(17_000) } });
    expect(response.status).toBe(431);
  });

  test('closes while a client holds a connection open, and twice', async () => {
    const url = new URL(await start());
    const client = connect(Number(url.port), url.hostname);
    await once(client, 'connect');
    const [server] = open.splice(0);
    await server?.close();
    await server?.close();
    await expect(fetch(`${url.href}healthz`)).rejects.toThrow('fetch failed');
    client.destroy();
  });

  test('a port that is taken is CONFIG_INVALID and names the options', async () => {
    const other: Server = createServer().listen(0, '127.0.0.1');
    await once(other, 'listening');
    const address = other.address();
    const port = typeof address === 'object' && address !== null ? address.port : 0;
    await expect(startHealthServer({ host: '127.0.0.1', port }, well)).rejects.toMatchObject({
      code: 'CONFIG_INVALID',
      message: `cannot listen on 127.0.0.1 port ${port} (EADDRINUSE); choose another with --host and --port, or HOST and PORT`,
    });
    other.close();
  });
});
