// I7 in the commands that answer a leak and end a key: compromise, retire, restore, destroy and the replacement of a leaked root
// key. Nothing that they print, well or badly ended, and nothing that they store beside the wraps themselves, shows a root key,
// a data key, a wrap or an envelope.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openControl } from '../../src/app.js';
import { runCapturedWith } from '../cli/captured.js';
import { openBareWorker } from '../support/by-hand.js';
import {
  envelopeCanaries,
  findCanaries,
  keyCanaries,
  tablesOf,
  type Canary,
  type Finding,
} from '../support/canaries.js';
import { startDirectRunner } from '../support/direct-run.js';
import { createPerson, passWait, type Person } from '../support/ending-keys.js';
import { nextUri, openRootedShop, type RootedShop } from '../support/roots.js';
import { insertCustomers, shopConfig } from '../support/shop.js';

let rooted: RootedShop;
let bob: Person;
const printed: Finding[] = [];
const canaries: Canary[] = [];

beforeAll(async () => {
  rooted = await openRootedShop();
  bob = await createPerson(rooted.shop, shopConfig);
  const writer = await rooted.open('present');
  await insertCustomers(rooted.shop, writer, [1, 2, 3]);
  await writer.close();
  const { KEYTURN_ROOT_KEY = '', KEYTURN_NEXT_ROOT = '' } = rooted.environment('both');
  canaries.push(...keyCanaries('the present root key', Buffer.from(KEYTURN_ROOT_KEY, 'hex')));
  canaries.push(...keyCanaries('the next root key', Buffer.from(KEYTURN_NEXT_ROOT, 'hex')));
});
afterAll(async () => {
  await bob.leave();
  await rooted.close();
  await bob.role.drop();
});

async function keyturn(code: number, line: string, environment = rooted.environment('both')): Promise<string> {
  const given = {
    environment,
    openControl: (options: Parameters<typeof openControl>[0]) => openControl({ ...options, file: shopConfig }),
  };
  const ended = await runCapturedWith(given, ...line.split(' '));
  printed.push({ place: `output of ${line}`, text: ended.stdout + ended.stderr });
  expect({ line, code: ended.code, stderr: ended.code === code ? '' : ended.stderr }).toEqual({
    line,
    code,
    stderr: '',
  });
  return ended.stdout;
}

/** What is secret now; keys that are gone later stay secrets. */
async function noteSecrets(): Promise<void> {
  const { shop } = rooted;
  const worker = await openBareWorker({ ...shop, environment: () => rooted.environment('both') });
  for (const key of worker.services.keyrings.current('customers').held)
    canaries.push(...keyCanaries(`data key ${key.id}`, key.material.export()));
  await worker.close();
  for (const { id, blob } of await shop.query('SELECT data_key_id AS id, blob FROM keyturn.data_key_wrap'))
    canaries.push({ name: `wrap of ${String(id)}`, bytes: (blob as Buffer).subarray(6, 38) });
  for (const { email } of await shop.query('SELECT email FROM customer WHERE email IS NOT NULL'))
    canaries.push(...envelopeCanaries('an envelope', String(email)));
}

async function finishRun(): Promise<void> {
  const [run] = await rooted.shop.query('SELECT id::int FROM keyturn.run WHERE finished_at IS NULL');
  const runner = await startDirectRunner({ ...rooted.shop, environment: () => rooted.environment('both') });
  await runner.finish(Number(run?.['id'])).finally(runner.close);
}

test('I7 nothing that ends a key prints or stores a root key, a data key, a wrap or an envelope', async () => {
  const { shop } = rooted;
  await noteSecrets();
  await keyturn(0, 'key compromise v1 --reason leaked --json');
  await finishRun();
  await keyturn(0, 'key compromise v1 --reason leaked');
  await keyturn(0, 'key restore v1 --reason test');
  await keyturn(0, 'key retire v1 --reason test --json');
  await keyturn(3, 'key restore v99 --reason test');
  await keyturn(4, 'key retire v2 --reason test');
  await keyturn(0, 'key destroy v1 --reason test');
  await passWait(shop);
  const approval = 'key destroy v1 --reason test --approve 1';
  await keyturn(4, approval);
  await keyturn(0, approval, { ...rooted.environment('both'), DATABASE_URL: bob.role.urlFor(shop.url) });
  await keyturn(8, 'key stage --reason test', {
    ...rooted.environment('both'),
    KEYTURN_ROOT_KEY: 'ab12'.repeat(15) + 'c3d4',
  });
  await noteSecrets();
  await keyturn(0, `root rotate --to ${nextUri} --reencrypt --reason leaked --json`);
  await noteSecrets();
  await finishRun();
  await keyturn(0, 'root finalize --reencrypt --reason leaked');
  await keyturn(0, 'key list');
  await keyturn(0, 'audit list --json');
  await keyturn(0, 'status');
  const stored = (await tablesOf(shop, 'keyturn')).filter(({ place }) => !place.endsWith('data_key_wrap'));
  expect(canaries.length).toBeGreaterThan(20);
  expect(printed.some(({ text }) => text.includes('customers v1 (id 1)'))).toBe(true);
  expect(findCanaries([...printed, ...stored], canaries)).toEqual([]);
});

test('with a suspect root key the next command names the run, the retirement and the root change', async () => {
  const { shop } = rooted;
  const [active] = await shop.query(`SELECT id::int FROM keyturn.data_key WHERE state = 'active' AND purpose = 1`);
  const id = Number(active?.['id']);
  const out = await keyturn(0, `key compromise ${id} --root-suspect --reason leaked --json`);
  const report = JSON.parse(out) as { next: string; run: { run_id: number }; standby_trouble: string | null };
  expect(report).toMatchObject({ standby_trouble: null, successor_trouble: null, key: { id, compromised: true } });
  expect(report.next).toBe(
    `keyturn run watch ${report.run.run_id}, then keyturn key retire ${id} --keyring customers, unless a supervisor whose login may change keys has done it; change the root key, and what it wrapped: keyturn root prepare --to URI and keyturn root finalize --reencrypt, or keyturn root rotate --to URI --reencrypt where nothing is live`,
  );
  expect(await keyturn(0, 'root status')).toContain('current, suspect');
  expect(await keyturn(0, 'status')).toContain('make a new root key, then keyturn root prepare --to URI');
});
