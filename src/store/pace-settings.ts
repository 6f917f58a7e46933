// What pacing cannot find out by itself: written by `init` from keyturn.yaml, read by the supervisor that leads.
import { optionalByDefault, type HealthSource } from '../rotation/health.js';
import { writeAudit } from './audit.js';
import type { Queryable } from './database.js';

export interface PaceSettings {
  /** Processors of the database server, which it does not tell. */
  readonly cpus: number | undefined;
  /** Sources that may be out of sight. */
  readonly optional: readonly HealthSource[];
}

export async function readPaceSettings(database: Queryable): Promise<PaceSettings> {
  const { rows } = await database.query('SELECT cpus, optional_sources FROM keyturn.cluster');
  const [cpus, optional] = rows[0] ?? [];
  return {
    cpus: typeof cpus === 'number' ? cpus : undefined,
    optional: Array.isArray(optional) ? (optional as HealthSource[]) : optionalByDefault,
  };
}

/** What is undefined is as it is by default. */
export async function writePaceSettings(
  client: Queryable,
  settings: { readonly cpus: number | undefined; readonly optional: readonly HealthSource[] | undefined },
): Promise<void> {
  const { rowCount } = await client.query(
    'UPDATE keyturn.cluster SET cpus = $1, optional_sources = $2 WHERE (cpus, optional_sources) IS DISTINCT FROM ($1::integer, $2::text[])',
    [settings.cpus ?? null, settings.optional ?? null],
  );
  if (rowCount === 0) return;
  await writeAudit(client, { action: 'cluster.pace', object: 'cluster', after: { ...settings } });
}
