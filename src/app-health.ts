// The wiring of health and metrics: what a worker or supervisor needs to be ready, by name, and the small server that says so.
import type { Membership } from './engine/membership.js';
import { readListenSettings, type Environment, type ListenSettings } from './environment.js';
import type { Database } from './store/database.js';
import { requireSchema } from './store/schema.js';
import { startHealthServer, type HealthServer } from './telemetry/health-server.js';
import type { Metrics } from './telemetry/metrics.js';

export interface HealthOptions {
  isAlive(): boolean;
  /** Whether each thing is there, by the name that `/readyz` gives it. */
  readonly needs: Readonly<Record<string, () => Promise<boolean>>>;
  /** Brings up to date what is read when it is asked for. */
  beforeMetrics(): Promise<void>;
}

/** Throws CONFIG_INVALID for a port that is none or is taken. */
export async function openHealth(
  process: { readonly environment: Environment; readonly listen?: Partial<ListenSettings> },
  metrics: Metrics,
  options: HealthOptions,
): Promise<HealthServer> {
  const server = await startHealthServer(
    { ...readListenSettings(process.environment), ...process.listen },
    {
      isAlive: () => options.isAlive(),
      async findMissing() {
        const names = Object.keys(options.needs);
        const there = await Promise.all(Object.values(options.needs).map((isThere) => withinPatience(isThere())));
        return names.filter((_, at) => there[at] !== true);
      },
      metrics: {
        contentType: metrics.contentType,
        async text() {
          await options.beforeMetrics();
          return metrics.text();
        },
      },
    },
  );
  return {
    url: server.url,
    async close() {
      metrics.stop();
      await server.close();
    },
  };
}

const patienceMs = 2_000;

/** What does not answer soon is missing, for whoever asks. */
async function withinPatience(asked: Promise<boolean>): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<boolean>((resolve) => {
    timer = setTimeout(() => resolve(false), patienceMs);
  });
  const there = await Promise.race([asked.catch(() => false), late]);
  clearTimeout(timer);
  return there;
}

export async function answers(database: Database): Promise<boolean> {
  await database.query('SELECT 1');
  return true;
}

export async function fits(database: Database): Promise<boolean> {
  await requireSchema(database);
  return true;
}

/** The generation of each keyring held. */
export function heldGenerations(membership: Membership): readonly (readonly [keyring: string, generation: number])[] {
  return membership.keyringNames.map((name) => [name, membership.current(name).generation]);
}

/** There is a keyring, and every one is fresh enough to encrypt with. */
export function holdsKeys(membership: Membership): boolean {
  const { keyringNames } = membership;
  for (const name of keyringNames) membership.forWriting(name);
  return keyringNames.length > 0;
}
