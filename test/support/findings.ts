// What doctor found, sorted out.
import type { Finding } from '../../src/engine/preflight.js';

/** All but what is ok; with a check, all of that check. */
export function rest(findings: readonly Finding[], check?: string): readonly Finding[] {
  return findings.filter((finding) => (check === undefined ? finding.level !== 'ok' : finding.check === check));
}
