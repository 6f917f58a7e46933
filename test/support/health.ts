// What workers and supervisors answer over HTTP, as a test reads it.
import { until } from './until.js';

const deadlineMs = 60_000;

export interface Ready {
  readonly status: number;
  readonly missing: readonly string[];
}

export async function readiness(url: string): Promise<Ready> {
  const response = await fetch(`${url}/readyz`);
  const { missing } = (await response.json()) as { missing: string[] };
  return { status: response.status, missing };
}

export async function waitUntilReady(url: string): Promise<void> {
  await until(async () => (await readiness(url)).status === 200, { what: `${url} to be ready`, deadlineMs });
}

export async function statusOf(url: string): Promise<number> {
  return (await fetch(url)).status;
}

export async function textOf(url: string): Promise<string> {
  return (await fetch(`${url}/metrics`)).text();
}

/** The samples of a scrape, by name and labels as they are printed. */
export function samplesOf(text: string): ReadonlyMap<string, number> {
  return new Map(
    text
      .split('\n')
      .filter((line) => line.startsWith('keyturn_'))
      .map((line) => {
        const at = line.lastIndexOf(' ');
        return [line.slice(0, at), Number(line.slice(at + 1))];
      }),
  );
}
