// Reads the known answers under test/vectors. Shapes are written down by each test that uses them.
import { readFileSync } from 'node:fs';
import { gunzipSync } from 'node:zlib';

const root = new URL('../vectors/', import.meta.url);

/** `Shape` is a promise of the file, which is frozen. */
export function readJsonVectors<Shape>(path: string): Shape {
  return JSON.parse(readFileSync(new URL(path, root), 'utf8')) as Shape;
}

/** One case of a NIST response file: the values of its group and its own, by name. */
export interface NistCase {
  readonly values: ReadonlyMap<string, string>;
  /** The bare line FAIL: the tag must not verify. */
  readonly mustFail: boolean;
}

export function readNistVectors(path: string): NistCase[] {
  const text = gunzipSync(readFileSync(new URL(path, root))).toString('latin1');
  const group = new Map<string, string>();
  const cases: NistCase[] = [];
  for (const block of text.split(/\r?\n\r?\n/)) {
    const own = new Map<string, string>();
    let mustFail = false;
    for (const line of block.split(/\r?\n/)) {
      const [, bracket, name, value] = /^(\[?)(\w+) =\s*(\w*)\]?$/.exec(line) ?? [];
      if (name !== undefined && value !== undefined) (bracket === '[' ? group : own).set(name, value);
      if (line === 'FAIL') mustFail = true;
    }
    if (own.has('Count')) cases.push({ values: new Map([...group, ...own]), mustFail });
  }
  return cases;
}

/** Hexadecimal of a vector file, which never holds anything else. */
export function hex(text: string | undefined): Buffer {
  if (text === undefined) throw new Error('the vector file lacks a value that its format promises');
  return Buffer.from(text, 'hex');
}
