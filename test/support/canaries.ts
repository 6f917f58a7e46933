// Marker secrets and the search for them: every form in which a careless print could show bytes, and the places where a
// running Keyturn leaves text. A hit names the secret and the form, never the bytes.
import { execFileSync } from 'node:child_process';
import { inspect } from 'node:util';
import pino from 'pino';
import type { Child } from './child.js';
import type { Shop } from './shop.js';

export interface Canary {
  readonly name: string;
  readonly bytes: Buffer;
}

/** A text found somewhere, and where. Text as latin1, so that every byte is one character. */
export interface Finding {
  readonly place: string;
  readonly text: string;
}

interface Form {
  readonly name: string;
  looksLike(bytes: Buffer): readonly string[];
  /** What the searched text loses first: prints of buffers and arrays are laid out with white space. */
  readonly without: 'nothing' | 'white space' | 'white space and case';
}

const forms: readonly Form[] = [
  { name: 'raw', looksLike: (bytes) => [bytes.toString('latin1')], without: 'nothing' },
  {
    name: 'latin1',
    looksLike: (bytes) => [Buffer.from(bytes.toString('latin1'), 'utf8').toString('latin1')],
    without: 'nothing',
  },
  { name: 'reversed', looksLike: (bytes) => [Buffer.from(bytes).reverse().toString('latin1')], without: 'nothing' },
  { name: 'hex', looksLike: (bytes) => [bytes.toString('hex')], without: 'white space and case' },
  { name: 'base64', looksLike: (bytes) => base64Cores(bytes, 'base64'), without: 'white space' },
  { name: 'base64url', looksLike: (bytes) => base64Cores(bytes, 'base64url'), without: 'white space' },
  { name: 'URL-encoded', looksLike: (bytes) => [percentOf(bytes)], without: 'white space and case' },
  { name: 'JSON bytes', looksLike: (bytes) => [[...bytes].join(',')], without: 'white space' },
];

/** The characters that bytes take in base64 wherever they begin in the encoded whole: ends depend on the neighbours. */
function base64Cores(bytes: Buffer, encoding: 'base64' | 'base64url'): string[] {
  return [0, 1, 2].map((offset) => {
    const encoded = Buffer.concat([Buffer.alloc(offset), bytes])
      .toString(encoding)
      .replaceAll('=', '');
    const from = offset === 0 ? 0 : offset + 1;
    const whole = Math.floor(((offset + bytes.length) * 8) / 6);
    return encoded.slice(from, whole);
  });
}

function percentOf(bytes: Buffer): string {
  return [...bytes].map((byte) => `%${byte.toString(16).padStart(2, '0')}`).join('');
}

/** Every canary in every place and form. */
export function findCanaries(findings: readonly Finding[], canaries: readonly Canary[]): string[] {
  return findings.flatMap(({ place, text }) => {
    const squeezed = text.replaceAll(/\s+/g, '');
    const searched = { nothing: text, 'white space': squeezed, 'white space and case': squeezed.toLowerCase() };
    return forms.flatMap(({ name, looksLike, without }) =>
      canaries
        .filter(({ bytes }) => looksLike(bytes).some((look) => searched[without].includes(look)))
        .map((canary) => `${place}: ${canary.name} as ${name}`),
    );
  });
}

/** Keys are searched in halves: a print that stops half way shows enough. */
export function keyCanaries(name: string, key: Buffer): readonly Canary[] {
  return [
    { name: `first half of ${name}`, bytes: key.subarray(0, 16) },
    { name: `second half of ${name}`, bytes: key.subarray(16) },
  ];
}

export function textCanary(name: string, text: string): Canary {
  return { name, bytes: Buffer.from(text, 'utf8') };
}

/** Of an envelope a part behind its header, which names the key and is no secret; text is searched as the bytes it stands for. */
export function envelopeCanaries(name: string, stored: string | Buffer): readonly Canary[] {
  if (Buffer.isBuffer(stored)) return [{ name, bytes: stored.subarray(20, 44) }];
  return [
    textCanary(`${name}, armoured`, stored.slice(24, 56)),
    ...envelopeCanaries(name, Buffer.from(stored.slice('kt1.'.length), 'base64url')),
  ];
}

/** Everything that printing an error can show: what loggers, consoles and serializers make of it. */
export function printsOf(place: string, error: unknown): Finding {
  let logged = '';
  pino({ base: null }, { write: (line: string) => (logged += line) }).error(error);
  const own = error instanceof Error ? JSON.stringify(error, Object.getOwnPropertyNames(error)) : '';
  const texts = [
    logged,
    own,
    JSON.stringify(error),
    inspect(error, { depth: 12, showHidden: true }),
    String(error),
    error instanceof Error ? (error.stack ?? '') : '',
  ];
  return { place: `error of ${place}`, text: toLatin1(texts.join('\n')) };
}

export function outputOf(place: string, child: Child): Finding {
  return { place: `output of ${place}`, text: toLatin1(`${child.lines.join('\n')}\n${child.stderr()}`) };
}

export function argumentsOf(place: string, child: Child): Finding {
  return {
    place: `arguments of ${place}`,
    text: toLatin1(execFileSync('ps', ['-ww', '-o', 'args=', '-p', String(child.pid)], { encoding: 'utf8' })),
  };
}

/** Every row of every table of a schema, as PostgreSQL prints it. */
export async function tablesOf(shop: Shop, schema: 'keyturn' | 'bullmq'): Promise<readonly Finding[]> {
  const findings: Finding[] = [];
  for (const { tablename } of await shop.query('SELECT tablename FROM pg_tables WHERE schemaname = $1', [schema])) {
    const rows = await shop.query(`SELECT t::text AS line FROM ${schema}.${String(tablename)} t`);
    findings.push({
      place: `table ${schema}.${String(tablename)}`,
      text: toLatin1(rows.map((row) => String(row['line'])).join('\n')),
    });
  }
  return findings;
}

function toLatin1(text: string): string {
  return Buffer.from(text, 'utf8').toString('latin1');
}
