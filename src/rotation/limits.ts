// How much of a run an operator allows: rows per second over all its workers, batches out at a time, hours of the day in a
// named time zone. Pure rules; `now` is the database's clock. Local time comes from Intl, so a clock that is put forward or
// back is heeded.
import { KeyturnError } from '../errors.js';

/** A part of each day, `from` included and `to` not; over midnight where `to` is the earlier one. */
export interface OpeningHours {
  /** `HH:MM`. */
  readonly from: string;
  readonly to: string;
  /** As IANA names it, `Europe/Berlin`. */
  readonly zone: string;
}

export interface RunLimits {
  readonly rowsPerSecond: number | undefined;
  /** Batches of the run that workers may have at a time. */
  readonly workers: number | undefined;
  readonly hours: OpeningHours | undefined;
}

export const noLimits: RunLimits = { rowsPerSecond: undefined, workers: undefined, hours: undefined };

export const maxRowsPerSecond = 1_000_000;
export const maxWorkers = 1_000;

/** What an operator changes; undefined leaves a limit as it is, null takes it away. */
export interface LimitChange {
  readonly rowsPerSecond?: number | null | undefined;
  readonly workers?: number | null | undefined;
  /** `22:00-06:00`. */
  readonly hours?: string | null | undefined;
  readonly zone?: string | undefined;
}

/** Throws LIMIT_INVALID. */
export function changeLimits(before: RunLimits, change: LimitChange): RunLimits {
  if (typeof change.rowsPerSecond === 'number') requireCount('rows per second', change.rowsPerSecond, maxRowsPerSecond);
  if (typeof change.workers === 'number') requireCount('workers', change.workers, maxWorkers);
  return {
    rowsPerSecond: changed(before.rowsPerSecond, change.rowsPerSecond),
    workers: changed(before.workers, change.workers),
    hours: changeHours(before.hours, change),
  };
}

function changed(before: number | undefined, change: number | null | undefined): number | undefined {
  return change === undefined ? before : (change ?? undefined);
}

function changeHours(before: OpeningHours | undefined, change: LimitChange): OpeningHours | undefined {
  if (change.hours === null && change.zone !== undefined)
    throw invalid('a time zone goes with hours, and those are taken away');
  if (change.hours === null) return undefined;
  const text = change.hours ?? (before && `${before.from}-${before.to}`);
  const zone = change.zone ?? before?.zone;
  if (text === undefined && zone === undefined) return undefined;
  if (text === undefined) throw invalid('a time zone goes with hours, such as 22:00-06:00, and there are none');
  if (zone === undefined) throw invalid(`hours ${text} of which time zone? say it, such as Europe/Berlin or UTC`);
  return parseHours(text, zone);
}

/** Batches of the run out at a time: no more than can each do a row per second, so that none rests longer than its lease. */
export function batchesAllowed(limits: RunLimits): number {
  return Math.min(limits.workers ?? Infinity, limits.rowsPerSecond ?? Infinity);
}

/** Reads `22:00-06:00`; `24:00` may end the day. Throws LIMIT_INVALID. */
export function parseHours(text: string, zone: string): OpeningHours {
  const [, from, to] = /^(\d\d:\d\d)-(\d\d:\d\d)$/.exec(text) ?? [];
  const [start, end] = [minutesOf(from), to === '24:00' ? 0 : minutesOf(to)];
  if (start === undefined || end === undefined)
    throw invalid(`expected hours such as 22:00-06:00, with two digits each, got "${text}"`);
  if (start === end)
    throw invalid(`hours ${text} begin when they end; to let a run go on all day, take them away with: none`);
  if (!isZone(zone)) throw invalid(`expected a time zone such as Europe/Berlin or UTC, got "${zone}"`);
  return { from: clockTime(start), to: clockTime(end), zone };
}

function invalid(message: string): KeyturnError {
  return new KeyturnError('LIMIT_INVALID', message);
}

/** `what` completes the sentence "expected …". Throws LIMIT_INVALID unless `count` is a whole number from 1 to `most`. */
export function requireCount(what: string, count: number, most: number): void {
  if (Number.isInteger(count) && count >= 1 && count <= most) return;
  throw invalid(`expected ${what}, a whole number from 1 to ${most}, got ${count}`);
}

/** `22:00-06:00 Europe/Berlin`. */
export function describeHours(hours: OpeningHours): string {
  return `${hours.from}-${hours.to} ${hours.zone}`;
}

export function isOpenAt(hours: OpeningHours, now: Date): boolean {
  return isWithin(hours, clockIn(hours.zone)(now.getTime()));
}

/** Of a day without a change of the clock. */
export function openSecondsADay({ from, to }: OpeningHours): number {
  return modulo((minutesOf(to) ?? 0) - (minutesOf(from) ?? 0), 24 * 60) * 60;
}

/** The first moment from `now` on at which the hours are open. */
export function nextOpening(hours: OpeningHours, now: Date): Date {
  const clock = clockIn(hours.zone);
  const from = (minutesOf(hours.from) ?? 0) * minuteMs;
  let at = now.getTime();
  for (;;) {
    if (isWithin(hours, clock(at))) return new Date(at);
    const candidate = at + modulo(from - clock(at), dayMs);
    const change = findClockChange(clock, at, candidate);
    if (change === undefined) return new Date(candidate);
    // The clock is put forward or back before: go on from there, where the hours may open at once.
    at = change;
  }
}

/** Words for a run that rests: `outside its hours 22:00-06:00 Europe/Berlin; goes on at 2026-03-01T21:00:00Z`. */
export function describeClosed(hours: OpeningHours, now: Date): string {
  const opening = nextOpening(hours, now)
    .toISOString()
    .replace(/\.\d+Z$/, 'Z');
  return `outside its hours ${describeHours(hours)}; goes on at ${opening}`;
}

const minuteMs = 60_000;
const dayMs = 24 * 60 * minuteMs;

/** Milliseconds since local midnight, as the clock on the wall shows them. */
type Clock = (instantMs: number) => number;

function clockIn(zone: string): Clock {
  const format = new Intl.DateTimeFormat('en-GB', {
    timeZone: zone,
    hourCycle: 'h23',
    hour: '2-digit',
    minute: '2-digit',
    second: '2-digit',
  });
  return (instantMs) => {
    const [hours = 0, minutes = 0, seconds = 0] = format.format(instantMs).split(':').map(Number);
    return (hours * 60 + minutes) * minuteMs + seconds * 1_000 + modulo(instantMs, 1_000);
  };
}

function isWithin(hours: OpeningHours, clockMs: number): boolean {
  const [from, to] = [(minutesOf(hours.from) ?? 0) * minuteMs, (minutesOf(hours.to) ?? 0) * minuteMs];
  return from < to ? clockMs >= from && clockMs < to : clockMs >= from || clockMs < to;
}

/** When, after `fromMs` and not after `toMs`, at most a day later, the clock jumps; undefined when it does not. */
function findClockChange(clock: Clock, fromMs: number, toMs: number): number | undefined {
  const offset = (instantMs: number): number => modulo(clock(instantMs) - instantMs, dayMs);
  const before = offset(fromMs);
  if (offset(toMs) === before) return undefined;
  let [low, high] = [fromMs, toMs];
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (offset(middle) === before) low = middle;
    else high = middle;
  }
  return high;
}

function minutesOf(time: string | undefined): number | undefined {
  const [, hours, minutes] = /^([01]\d|2[0-3]):([0-5]\d)/.exec(time ?? '') ?? [];
  return hours === undefined ? undefined : Number(hours) * 60 + Number(minutes);
}

function clockTime(minutes: number): string {
  return [Math.floor(minutes / 60), minutes % 60].map((part) => String(part).padStart(2, '0')).join(':');
}

function isZone(zone: string): boolean {
  try {
    return new Intl.DateTimeFormat('en-GB', { timeZone: zone }).resolvedOptions().timeZone !== '';
  } catch {
    return false;
  }
}

function modulo(value: number, divisor: number): number {
  return ((value % divisor) + divisor) % divisor;
}
