// Shows that the tests have teeth: copies the tree, takes out one safeguard at a time, and expects the one test that is
// named for it to fail. The named tests pass first on an untouched copy. Run by: npm run test:mutations [-- part of a name]
import { execFileSync, spawn } from 'node:child_process';
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { startEmbeddedPostgres } from '../../src/embedded/postgres.js';
import { mutations, type Mutation } from './mutations.js';

const checkout = join(import.meta.dirname, '..', '..', '..');
const copied = ['package.json', 'tsconfig.json', 'vitest.config.ts', 'src', 'workers', 'test', 'native'];

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

function copyTree(): string {
  const copy = mkdtempSync(join(tmpdir(), 'keyturn-mutations-'));
  for (const part of copied) cpSync(join(checkout, part), join(copy, part), { recursive: true });
  symlinkSync(join(checkout, 'node_modules'), join(copy, 'node_modules'), 'junction');
  return copy;
}

interface Verdict {
  readonly passed: number;
  readonly failed: number;
  /** First line of each failure. */
  readonly complaints: readonly string[];
  /** Vitest's own words, for when a verdict is not the expected one. */
  readonly output: string;
}

interface Report {
  readonly testResults: readonly {
    readonly assertionResults: readonly { readonly status: string; readonly failureMessages: readonly string[] }[];
  }[];
}

/** Runs the tests of these files whose names contain one of `names`. */
async function runTests(copy: string, databaseUrl: string, tests: readonly Mutation['test'][]): Promise<Verdict> {
  const report = join(copy, 'report.json');
  rmSync(report, { force: true });
  const pattern = [...new Set(tests.map(({ name }) => name.replaceAll(/[\\^$.*+?()[\]{}|]/g, '\\$&')))].join('|');
  const files = [...new Set(tests.map(({ file }) => file))];
  const args = [
    join('node_modules', 'vitest', 'vitest.mjs'),
    'run',
    ...files,
    '-t',
    pattern,
    '--reporter=json',
    `--outputFile=${report}`,
  ];
  const child = spawn(process.execPath, args, {
    cwd: copy,
    env: { ...process.env, DATABASE_URL: databaseUrl },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (text: string) => (output += text));
  await new Promise((resolve) => child.once('close', resolve));
  const results = existsSync(report)
    ? (JSON.parse(readFileSync(report, 'utf8')) as Report).testResults.flatMap(
        ({ assertionResults }) => assertionResults,
      )
    : [];
  const count = (status: string): number => results.filter((result) => result.status === status).length;
  const complaints = results.flatMap(({ failureMessages }) =>
    failureMessages.map((message) => message.split('\n')[0] ?? ''),
  );
  return { passed: count('passed'), failed: count('failed'), complaints, output };
}

/** Only where the addon is built: its sources are compiled anew with and without the safeguard. */
function isNative({ file }: Mutation): boolean {
  return file.startsWith('native/');
}

const hasNative = existsSync(join(checkout, 'native', 'build', 'Release', 'keyturn_native.node'));

function compile(copy: string): void {
  execFileSync('npm', ['run', '--silent', 'build:native'], { cwd: copy, stdio: ['ignore', 'ignore', 'inherit'] });
}

/** The mutated file; throws unless the text stands in it exactly once. */
function mutate(copy: string, { file, text, replacement }: Mutation): { restore(): void } {
  const path = join(copy, file);
  const original = readFileSync(path, 'utf8');
  const parts = original.split(text);
  if (parts.length !== 2) throw new Error(`${file} has ${parts.length - 1} times, and should have once: ${text}`);
  writeFileSync(path, parts.join(replacement));
  return { restore: () => writeFileSync(path, original) };
}

/** Whether the test that is named for the mutation fails without what it removes. */
async function isNoticed(copy: string, databaseUrl: string, mutation: Mutation): Promise<boolean> {
  const { restore } = mutate(copy, mutation);
  if (isNative(mutation)) compile(copy);
  const startedAt = performance.now();
  const verdict = await runTests(copy, databaseUrl, [mutation.test]);
  restore();
  if (isNative(mutation)) compile(copy);
  // By an expectation of its own: a mutation that breaks a statement would be noticed by anything.
  const isIt = verdict.failed === 1 && verdict.complaints.every((complaint) => complaint.startsWith('AssertionError'));
  const seconds = ((performance.now() - startedAt) / 1_000).toFixed(1);
  const lines = [`${isIt ? 'noticed' : 'NOT NOTICED'} in ${seconds} s: without ${mutation.removes}`];
  lines.push(...verdict.complaints.map((complaint) => `        ${complaint}`));
  say([...lines, ...(isIt ? [] : [verdict.output])].join('\n'));
  return isIt;
}

async function passesUntouched(copy: string, databaseUrl: string, chosen: readonly Mutation[]): Promise<boolean> {
  const names = new Set(chosen.map(({ test }) => `${test.file} ${test.name}`));
  const { passed, failed, output } = await runTests(
    copy,
    databaseUrl,
    chosen.map(({ test }) => test),
  );
  if (passed === names.size && failed === 0) {
    say(`untouched: ${passed} tests pass`);
    return true;
  }
  say(`${output}\nof ${names.size} named tests ${passed} passed and ${failed} failed on the untouched tree`);
  return false;
}

/** Each has a copy of its own. */
const lanes = 2;

async function runAll(databaseUrl: string, chosen: readonly Mutation[]): Promise<boolean> {
  const copies = Array.from({ length: lanes }, copyTree);
  try {
    if (!(await passesUntouched(String(copies[0]), databaseUrl, chosen))) return false;
    const waiting = [...chosen];
    let noticed = 0;
    await Promise.all(
      copies.map(async (copy) => {
        for (let next = waiting.shift(); next !== undefined; next = waiting.shift())
          if (await isNoticed(copy, databaseUrl, next)) noticed++;
      }),
    );
    say(`${noticed} of ${chosen.length} mutations noticed`);
    return noticed === chosen.length;
  } finally {
    for (const copy of copies) rmSync(copy, { recursive: true, force: true });
  }
}

const [wanted = ''] = process.argv.slice(2);
const named = mutations.filter(({ removes }) => removes.includes(wanted));
const chosen = named.filter((mutation) => hasNative || !isNative(mutation));
if (chosen.length < named.length) say('left out: what is compiled, since the native path is not built');
if (chosen.length === 0) throw new Error(`no mutation removes "${wanted}"`);
const given = process.env['DATABASE_URL'];
const server = given === undefined || given === '' ? await startEmbeddedPostgres() : undefined;
try {
  process.exitCode = (await runAll(given || (server?.url ?? ''), chosen)) ? 0 : 1;
} finally {
  await server?.stop();
}
