// The formats a column can be registered with, by the name used in keyturn.yaml and in the registry table.
import type { Format } from './format.js';
import { keyturnFormat } from './keyturn.js';

const formats: ReadonlyMap<string, Format> = new Map([keyturnFormat].map((format) => [format.name, format]));

export const formatNames: readonly string[] = [...formats.keys()];

export function formatByName(name: string): Format | undefined {
  return formats.get(name);
}
