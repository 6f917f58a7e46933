// The files that deploy Keyturn, as far as they can be checked without the engines that read them: they parse, every command
// line in them is one of Keyturn's, every variable one that it reads, every probe a path that is answered.
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { parse, parseAllDocuments } from 'yaml';
import { healthPaths } from '../../src/telemetry/health-server.js';
import { parseCommandLine } from '../cli/captured.js';

const checkout = join(import.meta.dirname, '..', '..');

function read(...path: string[]): string {
  return readFileSync(join(checkout, ...path), 'utf8');
}

/** Variables that Keyturn reads, also as NAME_FILE where it is a secret; those that the images of others read are not ours. */
const variables = [
  'DATABASE_URL_FILE',
  'REDIS_URL_FILE',
  'KEYTURN_ROOT_KEY_FILE',
  'KEYTURN_CONFIG',
  'KEYTURN_MEMBER',
  'LOG_LEVEL',
  'NODE_ENV',
  'HOST',
  'PORT',
];

describe('the image', () => {
  const dockerfile = read('Dockerfile');
  const stages = dockerfile.split(/^FROM /m).slice(1);
  const last = stages.at(-1) ?? '';

  test('is Debian slim of a supported Node, installs as locked and without scripts, and keeps the typeorm peer', () => {
    const { engines } = JSON.parse(read('package.json')) as { engines: { node: string } };
    for (const stage of stages) expect(stage).toMatch(/^node:22-bookworm-slim/);
    expect(engines.node).toContain('^22.');
    expect(dockerfile).toContain('npm ci --omit=dev --ignore-scripts');
    expect(dockerfile).toContain('test -d node_modules/typeorm');
  });

  test('runs as a user of its own and sets no variable that Keyturn does not read', () => {
    expect(last).toMatch(/^USER node$/m);
    expect(last.indexOf('USER')).toBeGreaterThan(last.lastIndexOf('COPY'));
    const set = [...(/^ENV (.*)$/m.exec(last)?.[1]?.matchAll(/(\w+)=/g) ?? [])].map((match) => match[1]);
    expect(set.filter((name) => !variables.includes(String(name)))).toEqual([]);
  });

  test('starts the command line of the package, by default a worker', () => {
    const { bin } = JSON.parse(read('package.json')) as { bin: { keyturn: string } };
    expect(last).toContain(`ENTRYPOINT ["node", "${bin.keyturn}"]`);
    expect(last).toContain('CMD ["worker"]');
  });

  test('copies only what .dockerignore lets through', () => {
    const allowed = read('.dockerignore')
      .split('\n')
      .filter((line) => line.startsWith('!'))
      .map((line) => line.slice(1));
    const copied = [...dockerfile.matchAll(/^COPY (?!--from)(.*) \S+$/gm)].flatMap((match) =>
      (match[1] ?? '').split(' '),
    );
    expect(copied.filter((name) => !allowed.includes(name))).toEqual([]);
    expect(allowed.filter((name) => !copied.includes(name))).toEqual([]);
  });
});

interface ComposeService {
  readonly command?: readonly string[];
  readonly image: string;
  readonly build?: string;
  readonly restart?: string;
  readonly environment?: Readonly<Record<string, string>>;
  readonly secrets?: readonly string[];
  readonly read_only?: boolean;
  readonly tmpfs?: readonly string[];
  readonly healthcheck?: { readonly test: readonly string[] };
  readonly deploy?: { readonly replicas: number };
  readonly depends_on?: Readonly<Record<string, { condition: string }>>;
}

describe('docker-compose.yml', () => {
  const compose = parse(read('docker-compose.yml'), { merge: true }) as {
    services: Record<string, ComposeService>;
    secrets: Record<string, { file: string }>;
  };
  const services = Object.entries(compose.services);
  const ours = services.filter(([, service]) => service.build !== undefined);

  test('has the services of a whole Keyturn, workers and supervisors in numbers', () => {
    expect(Object.keys(compose.services)).toEqual(['postgres', 'redis', 'init', 'supervisor', 'worker', 'prometheus']);
    for (const name of ['supervisor', 'worker']) expect(compose.services[name]?.deploy?.replicas).toBeGreaterThan(1);
  });

  test('runs commands of Keyturn that exist, with variables that it reads and every secret from a file', () => {
    for (const [name, service] of ours) {
      expect(parseCommandLine(service.command ?? [])).toBe(name);
      const environment = Object.entries(service.environment ?? {});
      expect(environment.filter(([variable]) => !variables.includes(variable))).toEqual([]);
      const files = environment.filter(([variable]) => variable.endsWith('_FILE')).map(([, path]) => path);
      expect(files.toSorted()).toEqual((service.secrets ?? []).map((secret) => `/run/secrets/${secret}`).toSorted());
      expect((service.secrets ?? []).filter((secret) => compose.secrets[secret] === undefined)).toEqual([]);
      expect(service).toMatchObject({ read_only: true, tmpfs: ['/tmp'], cap_drop: ['ALL'] });
    }
  });

  test('gives the supervisor no root key', () => {
    expect(compose.services['supervisor']?.secrets).not.toContain('root_key');
    expect(compose.services['worker']?.secrets).toContain('root_key');
  });

  test('asks every service that stays whether it is well', () => {
    const without = services.filter(([, { restart, healthcheck }]) => restart !== 'no' && healthcheck === undefined);
    expect(without.map(([name]) => name)).toEqual([]);
  });

  test('asks every long-running process of ours whether it is alive, where it answers', () => {
    for (const name of ['supervisor', 'worker']) {
      const asked = /http:\/\/127\.0\.0\.1:(\d+)(\/\w+)/.exec(
        compose.services[name]?.healthcheck?.test.join(' ') ?? '',
      );
      expect(asked?.[1]).toBe(/PORT=(\d+)/.exec(read('Dockerfile'))?.[1]);
      expect(healthPaths).toContain(asked?.[2]);
    }
    const scraped = parse(read('deploy', 'prometheus', 'prometheus.yml')) as {
      scrape_configs: { dns_sd_configs: { names: string[]; port: number }[] }[];
    };
    expect(
      scraped.scrape_configs.flatMap((job) => job.dns_sd_configs.map(({ names, port }) => [...names, port])),
    ).toEqual([
      ['supervisor', 9464],
      ['worker', 9464],
    ]);
  });

  test('runs a Redis that evicts nothing and keeps its queue over a restart, and waits for both servers', () => {
    const redis = (compose.services['redis']?.command ?? []).join(' ');
    expect(redis).toMatch(/^redis-server .*--maxmemory-policy noeviction --appendonly yes/);
    expect(Number(/^postgres:(\d+)/.exec(compose.services['postgres']?.image ?? '')?.[1])).toBeGreaterThanOrEqual(16);
    for (const name of ['supervisor', 'worker'])
      expect(compose.services[name]?.depends_on).toEqual({
        postgres: { condition: 'service_healthy' },
        redis: { condition: 'service_healthy' },
      });
  });
});

describe('the systemd units', () => {
  const folder = join(checkout, 'deploy', 'systemd');
  const files = readdirSync(folder).map((name) => ({ name, text: readFileSync(join(folder, name), 'utf8') }));
  const units = files.filter(({ name }) => !name.endsWith('.conf'));
  const dropIns = files.filter(({ name }) => name.endsWith('.conf'));
  const services = units.filter(({ name }) => name.endsWith('.service'));

  test('start commands of Keyturn that exist, with variables that it reads', () => {
    const started = services.map(({ text }) => {
      const line = /^ExecStart=\/usr\/bin\/env keyturn (.*)$/m.exec(text)?.[1] ?? '';
      return parseCommandLine(words(line.replaceAll('%i', '1')));
    });
    expect(started.toSorted()).toEqual(['key rotate', 'supervisor', 'worker']);
    const set = services.flatMap(({ text }) =>
      [...text.matchAll(/^Environment=(\w+)=/gm)].map((match) => String(match[1])),
    );
    expect(set.filter((variable) => !variables.includes(variable))).toEqual([]);
  });

  test('take secrets as credentials, never in the environment, and only the supervisor does without the root key', () => {
    for (const { name, text } of services) {
      expect(text).toMatch(/^LoadCredential=(owner_)?database_url:/m);
      expect(text.includes('LoadCredential=root_key:')).toBe(!name.includes('supervisor'));
      expect(text).not.toMatch(/^Environment=(DATABASE_URL|REDIS_URL|KEYTURN_ROOT_KEY)=/m);
      for (const line of ['DynamicUser=yes', 'LimitCORE=0', 'NoNewPrivileges=yes', 'ProtectSystem=strict'])
        expect(text).toContain(`\n${line}\n`);
    }
  });

  /** Credentials by the variable that names their file, as far as they are logins. */
  const loginOf = (text: string): string | undefined => {
    const login = /^Environment=DATABASE_URL_FILE=%d\/(\w+)$/m.exec(text)?.[1];
    expect(text).toContain(`\nLoadCredential=${login}:/etc/keyturn/${login}\n`);
    return login;
  };

  test('log in as the worker role, and as the owner where keys are changed', () => {
    expect(Object.fromEntries(services.map(({ name, text }) => [name, loginOf(text)]))).toEqual({
      'keyturn-rotate.service': 'owner_database_url',
      'keyturn-supervisor.service': 'database_url',
      'keyturn-worker@.service': 'database_url',
    });
  });

  test('a supervisor that keeps schedules has, by its drop-in, the owner’s login and a private copy of the root key', () => {
    const [dropIn] = dropIns;
    expect(dropIns.map(({ name }) => name)).toEqual(['keyturn-supervisor-schedules.conf']);
    expect(loginOf(dropIn?.text ?? '')).toBe('owner_database_url');
    const rotate = services.find(({ name }) => name.includes('rotate'))?.text ?? '';
    const rootKeyLines = (text: string): string[] =>
      text.split('\n').filter((line) => !line.startsWith('#') && /root_key|^RuntimeDirectory/.test(line));
    expect(rootKeyLines(dropIn?.text ?? '')).toEqual(
      rootKeyLines(rotate).map((line) => line.replaceAll('keyturn-rotate', 'keyturn-supervisor')),
    );
  });

  test('systemd-analyze verifies them', (context) => {
    if (spawnSync('systemd-analyze', ['--version']).status !== 0)
      return context.skip('systemd-analyze is not installed');
    const copies = mkdtempSync(join(tmpdir(), 'keyturn-units-'));
    for (const { name } of units) copyFileSync(join(folder, name), join(copies, name));
    // Under its own name as well, as it is without its drop-in.
    mkdirSync(join(copies, 'with', 'keyturn-supervisor.service.d'), { recursive: true });
    const supervisor = join(copies, 'with', 'keyturn-supervisor.service');
    copyFileSync(join(folder, 'keyturn-supervisor.service'), supervisor);
    for (const { name } of dropIns) copyFileSync(join(folder, name), join(`${supervisor}.d`, name));
    const { status, stdout, stderr } = spawnSync(
      'systemd-analyze',
      ['verify', ...units.map(({ name }) => join(copies, name)), supervisor],
      { encoding: 'utf8' },
    );
    rmSync(copies, { recursive: true });
    expect({ status, said: stdout + stderr }).toEqual({ status: 0, said: '' });
  });
});

interface Container {
  readonly name: string;
  readonly command?: readonly string[];
  readonly args?: readonly string[];
  readonly env?: readonly { readonly name: string; readonly value?: string }[];
  readonly ports?: readonly { readonly name: string; readonly containerPort: number }[];
  readonly securityContext: unknown;
  readonly volumeMounts: readonly { readonly name: string; readonly mountPath: string }[];
  readonly livenessProbe?: Probe;
  readonly readinessProbe?: Probe;
  readonly startupProbe?: Probe;
}

interface Probe {
  readonly httpGet: { readonly path: string; readonly port: string };
}

interface Pod {
  readonly securityContext: unknown;
  readonly initContainers?: readonly Container[];
  readonly containers: readonly Container[];
  readonly volumes: readonly {
    readonly name: string;
    readonly secret?: { readonly secretName: string; readonly items?: readonly { readonly path: string }[] };
  }[];
}

interface Manifest {
  readonly kind: string;
  readonly metadata: { readonly name: string };
  readonly spec: {
    readonly template?: { readonly spec: Pod };
    readonly jobTemplate?: { readonly spec: { readonly template: { readonly spec: Pod } } };
    readonly replicas?: number;
    readonly selector?: { readonly matchLabels: unknown };
    readonly scaleTargetRef?: { readonly name: string };
    readonly triggers?: readonly { readonly metadata: { readonly query: string } }[];
    readonly schedule?: string;
  };
}

describe('the Kubernetes manifests', () => {
  const folder = join(checkout, 'deploy', 'kubernetes');
  const documents = readdirSync(folder)
    .filter((name) => name.endsWith('.yaml'))
    .flatMap((name) => parseAllDocuments(readFileSync(join(folder, name), 'utf8')));
  const manifests = documents.map((document) => document.toJS() as Manifest);
  const pods = manifests.flatMap(({ spec }) => {
    const pod = spec?.template?.spec ?? spec?.jobTemplate?.spec.template.spec;
    return pod === undefined ? [] : [pod];
  });
  const containers = pods.flatMap((pod) => pod.containers);

  test('parse, each of a kind and with a name of its own', () => {
    expect(documents.flatMap((document) => document.errors)).toEqual([]);
    const names = manifests.map(({ kind, metadata }) => `${kind} ${metadata.name}`);
    expect(new Set(names).size).toBe(names.length);
  });

  test('run commands of Keyturn that exist, with variables that it reads', () => {
    expect(containers.map(({ args }) => parseCommandLine(args ?? [])).toSorted()).toEqual([
      'key rotate',
      'supervisor',
      'worker',
    ]);
    const set = containers.flatMap(({ env }) => (env ?? []).map(({ name }) => name));
    expect(set.filter((variable) => !variables.includes(variable))).toEqual([]);
  });

  test('probe paths that are answered, on the port that the command listens on', () => {
    for (const container of containers.filter(({ name }) => name !== 'rotate')) {
      expect(container.livenessProbe?.httpGet.path).toBe('/healthz');
      expect(container.startupProbe?.httpGet.path).toBe('/healthz');
      expect(container.readinessProbe?.httpGet.path).toBe('/readyz');
      const port = container.ports?.find(({ name }) => name === container.livenessProbe?.httpGet.port)?.containerPort;
      expect(container.args?.slice(1)).toEqual(['--port', String(port), '--host', '0.0.0.0']);
    }
  });

  test('run as nobody in particular, on a read-only root file system, with every mount a volume', () => {
    for (const pod of pods) {
      expect(pod.securityContext).toMatchObject({ runAsNonRoot: true });
      for (const container of [...pod.containers, ...(pod.initContainers ?? [])]) {
        expect(container.securityContext).toEqual({
          readOnlyRootFilesystem: true,
          allowPrivilegeEscalation: false,
          capabilities: { drop: ['ALL'] },
        });
        const volumes = pod.volumes.map(({ name }) => name);
        expect(container.volumeMounts.filter(({ name }) => !volumes.includes(name))).toEqual([]);
      }
    }
  });

  test('read every secret from a file that is mounted, the root key from a private copy, and give the supervisor none', () => {
    for (const pod of pods)
      for (const container of pod.containers) {
        const files = filesOf(container);
        for (const file of files.filter((path) => !path.startsWith('/run/root/')))
          expect(secretValue(pod, container, file)).toMatch(/\S/);
        const rootKey = files.find((file) => file.endsWith('/root_key'));
        expect(rootKey).toBe(container.name === 'supervisor' ? undefined : '/run/root/private/root_key');
      }
  });

  function filesOf({ env }: Container): string[] {
    return (env ?? []).filter((variable) => variable.name.endsWith('_FILE')).map(({ value }) => String(value));
  }

  /** What stands in a file that a pod's container is given from a Secret. */
  function secretValue(pod: Pod, container: Container, file: string): string | undefined {
    const mount = container.volumeMounts.find(({ mountPath }) => file.startsWith(`${mountPath}/`));
    const source = pod.volumes.find(({ name }) => name === mount?.name)?.secret;
    const key = file.slice(`${mount?.mountPath}/`.length);
    if (source?.items?.some(({ path }) => path === key) === false) return undefined;
    const secrets = manifests as unknown as { metadata: { name: string }; stringData?: Record<string, string> }[];
    return secrets.find(({ metadata, stringData }) => stringData && metadata.name === source?.secretName)?.stringData?.[
      key
    ];
  }

  test('log in as the worker role, and as the owner where keys are changed; no worker can read the owner’s login', () => {
    const roles = pods.flatMap((pod) =>
      pod.containers.map((container) => {
        const file = container.env?.find(({ name }) => name === 'DATABASE_URL_FILE')?.value ?? '';
        return [container.name, new URL(secretValue(pod, container, file) ?? '').username];
      }),
    );
    expect(Object.fromEntries(roles)).toEqual({
      rotate: 'keyturn_owner',
      supervisor: 'keyturn_worker',
      worker: 'keyturn_worker',
    });
    const secretsOf = (name: string): unknown[] =>
      pods
        .filter((pod) => pod.containers.some((container) => container.name === name))
        .flatMap((pod) => pod.volumes.flatMap(({ secret }) => secret?.secretName ?? []));
    expect(['worker', 'supervisor', 'rotate'].map(secretsOf)).toEqual([
      ['keyturn'],
      ['keyturn'],
      ['keyturn', 'keyturn-owner'],
    ]);
  });

  test('a supervisor that keeps schedules has, by its patch, the owner’s login and a private copy of the root key', (context) => {
    if (spawnSync('kubectl', ['version', '--client']).status !== 0) return context.skip('kubectl is not installed');
    const { status, stdout, stderr } = spawnSync(
      'kubectl',
      [
        ...['patch', '--local', '--filename', '-'],
        ...['--patch-file', join(folder, 'supervisor-schedules.patch'), '--output', 'yaml'],
      ],
      {
        encoding: 'utf8',
        input: JSON.stringify(manifests.find(({ metadata }) => metadata.name === 'keyturn-supervisor')),
      },
    );
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    const pod = (parse(stdout) as Manifest).spec.template?.spec;
    const supervisor = pod?.containers[0];
    const worker = pods.find((one) => one.containers.some(({ name }) => name === 'worker'));
    if (pod === undefined || supervisor === undefined) throw new Error('the patch leaves a supervisor');
    const [database, rootKey, redis] = ['DATABASE_URL_FILE', 'KEYTURN_ROOT_KEY_FILE', 'REDIS_URL_FILE'].map(
      (variable) => String(supervisor.env?.find(({ name }) => name === variable)?.value),
    );
    expect(new URL(secretValue(pod, supervisor, String(database)) ?? '').username).toBe('keyturn_owner');
    expect(secretValue(pod, supervisor, String(redis))).toMatch(/^rediss:/);
    expect(rootKey).toBe('/run/root/private/root_key');
    expect(pod.initContainers).toEqual(worker?.initContainers);
    const volumes = pod.volumes.map(({ name }) => name);
    expect(supervisor.volumeMounts.filter(({ name }) => !volumes.includes(name))).toEqual([]);
  });

  test('copy the root key where nobody else reads it, before what needs it starts', () => {
    const copying = pods.filter((pod) => pod.initContainers !== undefined);
    expect(copying.flatMap((pod) => pod.containers.map(({ name }) => name)).toSorted()).toEqual(['rotate', 'worker']);
    for (const { initContainers } of copying)
      expect(initContainers?.[0]?.command?.at(-1)).toBe(
        'umask 077 && mkdir -p /run/root/private && cp -L /run/keyturn/root_key /run/root/private/root_key',
      );
  });

  test('scale workers on batches that wait, and leave their number to the autoscaler', () => {
    const scaler = manifests.find(({ kind }) => kind === 'ScaledObject');
    const worker = manifests.find(
      ({ kind, metadata }) => kind === 'Deployment' && metadata.name === scaler?.spec.scaleTargetRef?.name,
    );
    expect(worker?.metadata.name).toBe('keyturn-worker');
    expect(worker?.spec.replicas).toBeUndefined();
    expect(scaler?.spec.triggers?.[0]?.metadata.query).toContain(
      'keyturn_batches{state=~"pending|dispatched|running"}',
    );
    expect(manifests.filter(({ kind }) => kind === 'PodDisruptionBudget')).toHaveLength(2);
  });
});

/** As a shell would split it: double quotes hold words together. */
function words(line: string): string[] {
  return [...line.matchAll(/"([^"]*)"|(\S+)/g)].map((match) => match[1] ?? match[2] ?? '');
}
