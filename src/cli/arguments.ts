// Values that commander checks while it parses: a wrong one is a usage error that names its option.
import { InvalidArgumentError } from 'commander';

export const idArgument = ['<id>', 'the number of the run'] as const;

export function parseRunId(text: string): number {
  if (!/^[1-9]\d{0,14}$/.test(text))
    throw new InvalidArgumentError('Expected the number of a run; see: keyturn run list');
  return Number(text);
}

export function parsePort(text: string): number {
  if (!/^\d{1,5}$/.test(text) || Number(text) > 65_535)
    throw new InvalidArgumentError('Expected a port, from 0 (any free one) to 65535.');
  return Number(text);
}

export function parseDescriptor(text: string): number {
  if (/^\d{1,4}$/.test(text)) return Number(text);
  throw new InvalidArgumentError('Expected a small number such as 0 (stdin) or 3.');
}

/** `what` completes the sentence "Expected …". */
export function parseCount(what: string, most: number): (text: string) => number {
  return (text) => {
    const count = /^\d{1,9}$/.test(text) ? Number(text) : 0;
    if (count < 1 || count > most) throw new InvalidArgumentError(`Expected ${what}, from 1 to ${most}.`);
    return count;
  };
}
