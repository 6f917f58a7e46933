// How a command that contained keys goes on: the emergency run, and, where somebody was named to do the work, its end and the
// retirement of what nothing names any more. Without them a supervisor retires the keys once the run is through.
import { beginEmergency, retireContained, type RetiredKey } from '../control/compromise.js';
import type { KeyListing } from '../control/keys.js';
import { refuseUnlessComplete, type BegunRun } from '../control/rotate-and-reencrypt.js';
import type { RunReport } from '../control/runs.js';
import type { Running } from './cli.js';
import { noteJoined } from './finish-run.js';
import { followRun } from './follow-run.js';
import { noteMissingRunners, type Staff } from './staff.js';
import { countOf } from './table.js';

export interface EmergencyEnd {
  readonly keyring: string;
  /** Undefined where nothing could name the keys. */
  readonly run: RunReport | undefined;
  readonly retired: readonly RetiredKey[];
  /** Keys that are still to be retired, by somebody else or a later command. */
  readonly left: readonly KeyListing[];
}

/** Throws what keeps the run from being a success. */
export async function endEmergency(
  running: Running,
  staff: Staff,
  contained: { readonly keyring: string; readonly keys: readonly KeyListing[]; readonly reason: string | undefined },
): Promise<EmergencyEnd> {
  const { context } = running;
  const { keyring, keys, reason } = contained;
  const begun = await beginEmergency(context, keyring, keys, { reason, supply: staff.supply });
  const run = begun === undefined ? undefined : await settle(running, staff, begun);
  const waiting = keys.filter(({ state }) => state === 'decrypt_only');
  if (run !== undefined && run.state !== 'succeeded') return { keyring, run, retired: [], left: waiting };
  const retired: RetiredKey[] = [];
  for (const { id } of waiting) retired.push(await retireContained(context, keyring, id, reason));
  return { keyring, run, retired, left: [] };
}

/** Waits where somebody was named to do the work; the report of the run either way. */
async function settle(running: Running, staff: Staff, begun: BegunRun): Promise<RunReport> {
  const { report } = begun;
  if (begun.begin === 'done') return report;
  if (begun.begin === 'joined') noteJoined(running, begun);
  if (!staff.waits) {
    await noteMissingRunners(running);
    return report;
  }
  const { context, output } = running;
  running.hintIfInterrupted(`the key is contained; repeat the command to go on with run ${report.run_id}`);
  const ended = await followRun({ context, output, runners: staff.runners }, report.run_id);
  refuseUnlessComplete(ended);
  return ended;
}

export function emergencyLines({ run, retired }: EmergencyEnd): readonly string[] {
  return [
    ...(run === undefined ? [] : [`run ${run.run_id} toward ${run.target_key} is ${run.state.replaceAll('_', ' ')}`]),
    ...retired.map(
      ({ key, proof }) =>
        `${key.title} is retired: none of ${countOf(
          proof.columns.reduce((sum, column) => sum + column.cells, 0),
          'cell',
        )} names it`,
    ),
  ];
}

/** What is still to be done by somebody else; undefined where nothing is. */
export function leftWords({ keyring, run, left }: EmergencyEnd): string | undefined {
  if (run === undefined || left.length === 0) return undefined;
  const retire = left.map(({ id }) => `keyturn key retire ${id} --keyring ${keyring}`).join(' and ');
  return `keyturn run watch ${run.run_id}, then ${retire}, unless a supervisor whose login may change keys has done it`;
}
