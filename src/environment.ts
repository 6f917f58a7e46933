// What the environment says: connections and log level. Apart from config.ts, so that workers load no parser for a file they
// never read.
import { readFileSync } from 'node:fs';
import { Secret } from './crypto/secret.js';
import { KeyturnError } from './errors.js';

export type Environment = Record<string, string | undefined>;

export interface Connections {
  readonly databaseUrl: Secret | undefined;
  /** A connection that no pooler sits in front of; LISTEN needs it. */
  readonly databaseDirectUrl: Secret | undefined;
  readonly redisUrl: Secret | undefined;
  readonly logLevel: string;
}

/** Throws CONFIG_INVALID for a secret's file that cannot be read and an unknown log level. */
export function readConnections(environment: Environment): Connections {
  const databaseUrl = secretFrom(environment, 'DATABASE_URL');
  return {
    databaseUrl,
    databaseDirectUrl: secretFrom(environment, 'DATABASE_DIRECT_URL') ?? databaseUrl,
    redisUrl: secretFrom(environment, 'REDIS_URL'),
    logLevel: logLevelFrom(environment),
  };
}

const logLevels: readonly string[] = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'];

function logLevelFrom(environment: Environment): string {
  const level = environment['LOG_LEVEL'] ?? '';
  if (level === '') return 'info';
  if (logLevels.includes(level)) return level;
  throw new KeyturnError('CONFIG_INVALID', `LOG_LEVEL is none of ${logLevels.join(', ')}`, { source: 'LOG_LEVEL' });
}

/** NAME, or the content of the file that NAME_FILE points at. */
function secretFrom(environment: Environment, name: string): Secret | undefined {
  const direct = environment[name];
  if (direct !== undefined && direct !== '') return new Secret(direct);
  const path = environment[`${name}_FILE`];
  if (path === undefined || path === '') return undefined;
  let content: string;
  try {
    content = readFileSync(path, 'utf8').trim();
  } catch {
    throw new KeyturnError('CONFIG_INVALID', `${name}_FILE points at ${path}, which cannot be read`, {
      source: `${name}_FILE`,
    });
  }
  if (content === '')
    throw new KeyturnError('CONFIG_INVALID', `${name}_FILE points at ${path}, which is empty`, {
      source: `${name}_FILE`,
    });
  return new Secret(content);
}
