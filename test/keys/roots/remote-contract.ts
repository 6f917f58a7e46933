// The contract of root keys behind a network, beside that of every root key: what they do when the provider is slow, away,
// busy, or has withdrawn the key. A provider's test calls this with its fake.
import { beforeEach, describe, expect, test } from 'vitest';
import { commitmentOf, generateDataKey } from '../../../src/crypto/data-key.js';
import type { DataKeyIdentity } from '../../../src/crypto/value-key.js';
import type { CallTiming } from '../../../src/keys/roots/remote-call.js';
import type { RootKey } from '../../../src/keys/roots/root-key.js';
import type { Fault, FaultyServer } from '../../support/faulty-server.js';
import { exampleCluster } from './root-key-contract.js';

const identity: DataKeyIdentity = {
  id: 9,
  algorithm: 'aes-256-gcm',
  purpose: 1,
  cluster: exampleCluster,
  scope: '11111111-1111-4111-8111-111111111111',
};
const openForMs = 10_000;

export interface RemoteProvider {
  server(): FaultyServer;
  open(timing: CallTiming): Promise<RootKey>;
  readonly throttled: Fault;
  readonly revoked: Fault;
  readonly broken: Fault;
}

export function describeRemoteContract(name: string, provider: RemoteProvider): void {
  describe(`contract of root keys behind a network: ${name}`, () => {
    let server: FaultyServer;
    let root: RootKey;
    let blob: Buffer;
    let nowMs = 0;
    let waits: number[] = [];
    const material = generateDataKey();
    const unwrap = (): Promise<unknown> => root.unwrap(1, identity, commitmentOf(identity, material), blob);
    const asked = async (call: () => Promise<unknown>): Promise<{ requests: number; error: unknown }> => {
      const before = server.requests.length;
      const error: unknown = await call().then(
        () => undefined,
        (thrown: unknown) => thrown,
      );
      return { requests: server.requests.length - before, error };
    };

    beforeEach(async () => {
      server = provider.server();
      server.fail(undefined);
      nowMs = 0;
      waits = [];
      root = await provider.open({
        timeoutMs: 100,
        now: () => nowMs,
        wait: async (milliseconds) => {
          waits.push(milliseconds);
        },
      });
      blob = await root.wrap(1, identity, material);
    });

    test('a provider that does not answer is given up at the deadline and named', async () => {
      server.fail('hang');
      const { error } = await asked(unwrap);
      expect(error).toMatchObject({ code: 'ROOT_KEY_UNAVAILABLE', kind: 'unavailable' });
    });

    test('after three failed calls the provider is left alone for 10 s, then asked once, and used again when it is back', async () => {
      server.fail(provider.broken);
      for (let call = 0; call < 3; call++)
        expect((await asked(unwrap)).error).toMatchObject({ code: 'ROOT_KEY_UNAVAILABLE' });
      expect(await asked(unwrap)).toMatchObject({
        requests: 0,
        error: { code: 'ROOT_KEY_UNAVAILABLE', message: expect.stringMatching(/asked again in \d+ s/) as string },
      });
      nowMs += openForMs + 1;
      const probes = await Promise.all([asked(unwrap), asked(unwrap), asked(unwrap)]);
      expect(probes.every(({ error }) => error !== undefined)).toBe(true);
      expect(Math.max(...probes.map(({ requests }) => requests))).toBe(1);
      server.fail(undefined);
      nowMs += openForMs + 1;
      expect((await asked(unwrap)).error).toBeUndefined();
      expect(await asked(unwrap)).toEqual({ requests: 1, error: undefined });
    });

    test('a provider that is too busy is asked again, later each time, and answers in the end', async () => {
      server.fail(provider.throttled, 3);
      expect(await asked(unwrap)).toEqual({ requests: 4, error: undefined });
      expect(waits).toHaveLength(3);
      expect(waits.every((milliseconds, at) => milliseconds >= 0 && milliseconds <= 3_000 + 100 * 2 ** (at + 1))).toBe(
        true,
      );
      expect(new Set(waits).size).toBe(3);
    });

    test('a provider that stays too busy is unavailable, after four attempts and no more', async () => {
      server.fail(provider.throttled);
      expect(await asked(unwrap)).toMatchObject({ requests: 4, error: { code: 'ROOT_KEY_UNAVAILABLE' } });
    });

    test('a broken connection is tried again at once and succeeds', async () => {
      server.fail('reset', 1);
      expect(await asked(unwrap)).toEqual({ requests: 2, error: undefined });
    });

    test('a key that was withdrawn is refused at once with what to look at, and the breaker stays closed', async () => {
      server.fail(provider.revoked);
      for (let call = 0; call < 4; call++) {
        expect(await asked(unwrap)).toMatchObject({
          requests: 1,
          error: {
            code: 'ROOT_KEY_REFUSED',
            kind: 'refused',
            message: expect.stringContaining('is refused by its provider') as string,
          },
        });
      }
      expect(await asked(() => root.createToken(1))).toMatchObject({ error: { code: 'ROOT_KEY_REFUSED' } });
    });

    test('an outage is no answer: a token is neither opened nor refused while the provider is away', async () => {
      const token = await root.createToken(1);
      server.fail(provider.broken);
      await expect(root.opensToken(1, token)).rejects.toMatchObject({ code: 'ROOT_KEY_UNAVAILABLE' });
    });

    test('no error shows a key, a wrap or a credential (I7)', async () => {
      const printed: string[] = [];
      for (const fault of [provider.broken, provider.revoked, provider.throttled, 'reset'] as const) {
        server.fail(fault);
        const { error } = await asked(unwrap);
        printed.push(JSON.stringify(error, Object.getOwnPropertyNames(error)));
      }
      for (const secret of [
        material.export().toString('base64'),
        material.export().toString('hex'),
        blob.subarray(4).toString('latin1').slice(0, 40),
        blob.subarray(4).toString('base64').slice(0, 40),
        'hvs.test-token',
        'test-secret-access-key',
      ])
        expect(printed.join('\n')).not.toContain(secret);
    });
  });
}
