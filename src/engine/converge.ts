// Waits until every live member can do what the next step of a rotation needs, or a deadline has passed.
import { findLaggards, type Laggard, type Requirement } from '../rotation/convergence.js';
import type { Queryable } from '../store/database.js';
import { listMembers } from '../store/members.js';

const pollMs = 250;

/** Who is still behind at the deadline; empty when all have converged. */
export async function waitForMembers(
  database: Queryable,
  requirement: Requirement,
  options: { readonly deadlineMs: number; readonly onWait: (laggards: readonly Laggard[]) => void },
): Promise<readonly Laggard[]> {
  const until = performance.now() + options.deadlineMs;
  for (;;) {
    const laggards = findLaggards(await listMembers(database), requirement);
    if (laggards.length === 0 || performance.now() >= until) return laggards;
    options.onWait(laggards);
    await new Promise((resolve) => setTimeout(resolve, pollMs));
  }
}
