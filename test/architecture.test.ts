// The shape of the project, tested: who imports whom, that the lint rules which say so really fire, that every error code
// and every invariant is named by a test, and that no test name promises twice.
import { spawnSync } from 'node:child_process';
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
  copyFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, relative, resolve } from 'node:path';
import { describe, expect, test } from 'vitest';
import { errorKinds } from '../src/errors.js';

const checkout = resolve(import.meta.dirname, '..');

function filesUnder(folder: string): string[] {
  return readdirSync(join(checkout, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith('.ts'))
    .map((entry) => relative(checkout, join(entry.parentPath, entry.name)));
}

function read(file: string): string {
  return readFileSync(join(checkout, file), 'utf8');
}

/** Static imports of a file, as paths from the checkout; packages as they are named. */
function importsOf(file: string): string[] {
  return namesIn(file, /^\s*(?:import|export)\s[^;]*?from '([^']+)'/gms);
}

/** Without those of types alone, which are gone at run time. */
function loadedBy(file: string): string[] {
  return namesIn(file, /^\s*(?:import|export)\s(?!type\b)[^;]*?from '([^']+)'/gms);
}

function namesIn(file: string, pattern: RegExp): string[] {
  return [...read(file).matchAll(pattern)].map((match) => {
    const name = match[1] ?? '';
    return name.startsWith('.')
      ? relative(checkout, resolve(checkout, dirname(file), name)).replace(/\.js$/, '.ts')
      : name;
  });
}

const sources = filesUnder('src');

/** What the files import, directly and through others. */
function reachableFrom(files: readonly string[], namesOf = importsOf): Set<string> {
  const reached = new Set<string>();
  const open = [...files];
  for (let file = open.pop(); file !== undefined; file = open.pop()) {
    if (reached.has(file)) continue;
    reached.add(file);
    if (/^(src|workers)\//.test(file)) open.push(...namesOf(file));
  }
  return reached;
}

describe('the import map', () => {
  test('crypto, formats, keys and codec alone are a library: they reach nothing else', () => {
    const core = sources.filter((file) => /^src\/(crypto|formats|keys)\//.test(file) || file === 'src/codec.ts');
    const outside = [...reachableFrom(core)].filter((file) => file.startsWith('src/') && !core.includes(file));
    expect(outside).toEqual(['src/errors.ts']);
  });

  test('the engine reaches no door, no control verb and no wiring', () => {
    const reached = [...reachableFrom(sources.filter((file) => file.startsWith('src/engine/')))];
    expect(
      reached.filter((file) => /^src\/(cli|control|http|grpc|dashboard|orm)\/|^src\/(app|index|config)\.ts/.test(file)),
    ).toEqual([]);
  });

  test('reencryptBatch does not reach the queue', () => {
    const reached = [...reachableFrom(['src/engine/reencrypt-batch.ts'])];
    expect(reached).toContain('src/codec.ts');
    expect(reached.filter((file) => file.startsWith('src/queue/') || file === 'bullmq' || file === 'ioredis')).toEqual(
      [],
    );
  });

  test('bullmq and ioredis are imported in src/queue alone', () => {
    const importers = sources.filter((file) => importsOf(file).some((name) => name === 'bullmq' || name === 'ioredis'));
    expect(importers.every((file) => file.startsWith('src/queue/'))).toBe(true);
    expect(importers.length).toBeGreaterThan(0);
  });

  test('prom-client is imported in src/telemetry alone, OpenTelemetry in src/queue', () => {
    const importersOf = (names: RegExp): string[] =>
      sources.filter((file) => importsOf(file).some((name) => names.test(name)));
    expect(importersOf(/^prom-client$/)).toEqual(['src/telemetry/metrics.ts']);
    expect(importersOf(/^(@opentelemetry\/|bullmq-otel)/)).toEqual(['src/queue/tracing.ts']);
  });

  test('a command that needs neither queue nor TypeORM loads neither', () => {
    const loaded = [...reachableFrom(['workers/keyturn.ts'], loadedBy)];
    expect(loaded).toContain('src/control/runs.ts');
    expect(loaded.filter((name) => ['bullmq', 'ioredis', 'typeorm', 'age-encryption'].includes(name))).toEqual([]);
  });

  test('an application with TypeORM needs no queue, and one without it loads no TypeORM', () => {
    const orm = [...reachableFrom(['src/orm/index.ts'])];
    expect(orm).toContain('typeorm');
    expect(orm.filter((file) => file.startsWith('src/queue/') || file === 'bullmq' || file === 'ioredis')).toEqual([]);
    const importers = sources.filter((file) => /^(?:import|export)\s(?!type\b)[^;]*?from 'typeorm'/m.test(read(file)));
    expect(importers.every((file) => file.startsWith('src/orm/'))).toBe(true);
    expect([...reachableFrom(['src/index.ts'])].filter((file) => file.startsWith('src/orm/'))).toEqual([]);
  });

  test('production code does not import the embedded PostgreSQL', () => {
    const importers = sources.filter(
      (file) => !file.startsWith('src/embedded/') && importsOf(file).some((name) => name.startsWith('src/embedded/')),
    );
    expect(importers.every((file) => file.startsWith('src/cli/demo/'))).toBe(true);
  });

  test('lint refuses a forbidden import, a cycle and a forgotten promise', () => {
    const folder = mkdtempSync(join(tmpdir(), 'keyturn-lint-'));
    try {
      symlinkSync(join(checkout, 'node_modules'), join(folder, 'node_modules'));
      for (const file of ['.oxlintrc.json', 'tsconfig.json', 'package.json'])
        copyFileSync(join(checkout, file), join(folder, file));
      const planted: Readonly<Record<string, string>> = {
        'src/crypto/a.ts': "import { b } from '../store/b.js';\nexport const a = b;\n",
        'src/store/b.ts': "import { c } from './c.js';\nexport const b = c;\n",
        'src/store/c.ts': "import { b } from './b.js';\nexport const c = (): unknown => b;\n",
        'src/engine/d.ts': 'async function work(): Promise<void> {}\nexport function start(): void {\n  work();\n}\n',
      };
      for (const [file, text] of Object.entries(planted)) {
        mkdirSync(join(folder, dirname(file)), { recursive: true });
        writeFileSync(join(folder, file), text);
      }
      const { stdout, status } = spawnSync(join(checkout, 'node_modules/.bin/oxlint'), ['--type-aware', 'src'], {
        cwd: folder,
        encoding: 'utf8',
      });
      expect(status).not.toBe(0);
      for (const rule of ['no-restricted-imports', 'no-cycle', 'no-floating-promises']) expect(stdout).toContain(rule);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });
});

describe('what tests promise', () => {
  const testFiles = filesUnder('test').filter((file) => file.endsWith('.test.ts'));
  const texts = testFiles.map(read);

  test('each invariant I1 to I10 is named by a test', () => {
    const named = (id: string): boolean =>
      texts.some((text) =>
        new RegExp(`(test|it|describe)(\\.\\w+(\\(.*?\\))?)?\\([\\s\\S]{0,40}\\b${id}\\b`).test(text),
      );
    expect(Array.from({ length: 10 }, (_, at) => `I${at + 1}`).filter((id) => !named(id))).toEqual([]);
  });

  test('each error code that the sources throw is expected by a test', () => {
    const thrown = Object.keys(errorKinds).filter((code) =>
      sources.some((file) => file !== 'src/errors.ts' && read(file).includes(`'${code}'`)),
    );
    const untested = thrown.filter((code) => !texts.some((text) => text.includes(code)));
    expect(untested).toEqual([]);
  });

  test('no code stands in the table that nothing throws', () => {
    // This belongs to doors that come later.
    const later = ['UNAUTHENTICATED'];
    const unused = Object.keys(errorKinds).filter(
      (code) =>
        !later.includes(code) && !sources.some((file) => file !== 'src/errors.ts' && read(file).includes(`'${code}'`)),
    );
    expect(unused).toEqual([]);
  });

  test('no two tests of a file have the same name', () => {
    const repeated = testFiles.flatMap((file) => {
      const names = [...read(file).matchAll(/^\s*(?:test|it)\(\s*(['"`])((?:(?!\1).)+)\1/gm)].map(
        (match) => match[2] ?? '',
      );
      return names
        .filter((name, at) => names.indexOf(name) < at && !name.includes('${'))
        .map((name) => `${file}: ${name}`);
    });
    expect(repeated).toEqual([]);
  });
});
