// Durations as people write them: 80d, 12h, 30m, 45s.
import { InvalidArgumentError } from 'commander';

const unitMs: Readonly<Record<string, number>> = { s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** Milliseconds. Throws commander's InvalidArgumentError, which it shows next to the option's name. */
export function parseDuration(text: string): number {
  const [, count, unit] = /^(\d{1,6})([smhd])$/.exec(text) ?? [];
  const ms = unit === undefined ? undefined : unitMs[unit];
  if (ms === undefined)
    throw new InvalidArgumentError('Expected a whole number and a unit, such as 80d, 12h, 30m or 45s.');
  return Number(count) * ms;
}

/** `12 min`, `3 h`, `5 days`: how long ago something was, or how old it is. */
export function describeAge(seconds: number): string {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5_400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172_800 ? `${Math.round(seconds / 3_600)} h` : `${Math.round(seconds / 86_400)} days`;
}

/** `0.8 s`, `12 s`, `1 min 5 s`, `2 h 10 min`: for a time that was taken or is left. */
export function describeSeconds(seconds: number): string {
  if (seconds < 9.95) return `${Number(seconds.toFixed(1))} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3_600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  const minutes = Math.round(whole / 60);
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
