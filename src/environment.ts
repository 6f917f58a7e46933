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

/** Where a worker or supervisor answers health and metrics. */
export interface ListenSettings {
  readonly host: string;
  /** 0 for any free one. */
  readonly port: number;
}

/** HOST and PORT; by default any free port of this machine alone. Throws CONFIG_INVALID for a port that is none. */
export function readListenSettings(environment: Environment): ListenSettings {
  const host = environment['HOST'] ?? '';
  const text = environment['PORT'] ?? '';
  const port = /^\d{1,5}$/.test(text) ? Number(text) : NaN;
  if (text !== '' && !(port <= 65_535))
    throw new KeyturnError('CONFIG_INVALID', 'PORT is no port; expected a number from 0 (any free one) to 65535', {
      source: 'PORT',
    });
  return { host: host === '' ? '127.0.0.1' : host, port: text === '' ? 0 : port };
}

/** KEYTURN_TRACES=1: jobs are traced, through the OpenTelemetry SDK that the operator loads. */
export function wantsTraces(environment: Environment): boolean {
  return environment['KEYTURN_TRACES'] === '1';
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
