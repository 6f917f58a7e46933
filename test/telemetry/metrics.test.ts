// The metrics that exist and the page that documents them are the same, and they keep Prometheus's conventions.
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { metricTable, openMetrics, type MetricDefinition, type MetricName } from '../../src/telemetry/metrics.js';
import { hasPrometheus } from '../support/prometheus.js';

const definitions = Object.entries<MetricDefinition>(metricTable);

/** Rows of the table in docs/metrics.md: name, type, labels, who shows it, help. */
function documented(): readonly string[] {
  const page = readFileSync(join(import.meta.dirname, '..', '..', 'docs', 'metrics.md'), 'utf8');
  return page.split('\n').filter((line) => line.startsWith('| `keyturn_'));
}

const shownBy = { both: 'both', worker: 'worker', supervisor: 'supervisor', leader: 'leading supervisor' } as const;

describe('the metrics', () => {
  test('docs/metrics.md lists exactly those that exist, with type, labels and help', () => {
    expect(documented()).toEqual(
      definitions.map(
        ([name, { type, labels, by, help }]) =>
          `| \`${name}\` | ${type} | ${labels.map((label) => `\`${label}\``).join(', ')} | ${shownBy[by]} | ${help} |`,
      ),
    );
  });

  test('I7 no label is a tenant, a fingerprint or a row', () => {
    const allowed = [
      'role',
      'version',
      'rank',
      'kind',
      'outcome',
      'end',
      'step',
      'keyring',
      'source',
      'state',
      'run',
      'cause',
      'generation',
      'reason',
    ];
    expect([...new Set(definitions.flatMap(([, { labels }]) => labels))].toSorted()).toEqual(allowed.toSorted());
  });

  test('each role shows its own metrics and those of both, by name', async () => {
    for (const role of ['worker', 'supervisor'] as const) {
      const metrics = openMetrics(role, '1.2.3');
      const text = await metrics.text();
      metrics.stop();
      const shown = [...text.matchAll(/^# HELP (\S+) (.*)$/gm)].map((match) => [match[1], match[2]]);
      const expected = definitions.filter(([, { by }]) => by === 'both' || (by === 'worker') === (role === 'worker'));
      expect(shown).toEqual(expected.map(([name, { help }]) => [name, help]));
      expect(text).toContain(`keyturn_process_info{role="${role}",version="1.2.3"} 1`);
    }
  });

  test('what the leader shows is absent until it has been read, and gone once it is replaced', async () => {
    const metrics = openMetrics('supervisor', '1');
    expect(await metrics.text()).not.toMatch(/^keyturn_queue_jobs /m);
    metrics.set('keyturn_queue_jobs', 3);
    metrics.replace('keyturn_runs', [{ labels: { state: 'paused' }, value: 1 }]);
    expect(await metrics.text()).toMatch(/^keyturn_queue_jobs 3$/m);
    metrics.replace('keyturn_queue_jobs', []);
    metrics.replace('keyturn_runs', [{ labels: { state: 'running' }, value: 2 }]);
    const text = await metrics.text();
    metrics.stop();
    expect(text).not.toMatch(/^keyturn_queue_jobs /m);
    expect(text).not.toContain('state="paused"');
    expect(text).toContain('keyturn_runs{state="running"} 2');
  });

  test('promtool has nothing to say against any of them', async (context) => {
    if (!hasPrometheus()) return context.skip('promtool is not installed');
    for (const role of ['worker', 'supervisor'] as const) {
      const { status, stdout, stderr } = spawnSync('promtool', ['check', 'metrics'], {
        input: await sampled(role),
        encoding: 'utf8',
      });
      expect({ status, said: stdout + stderr }).toEqual({ status: 0, said: '' });
    }
  });
});

/** One sample of each metric, so that promtool has something to look at. */
async function sampled(role: 'worker' | 'supervisor'): Promise<string> {
  const metrics = openMetrics(role, '1');
  for (const [name, { by, type, labels }] of definitions) {
    if (by !== 'both' && (by === 'worker') !== (role === 'worker')) continue;
    const values = Object.fromEntries(labels.map((label) => [label, 'x']));
    if (type === 'counter') metrics.add(name as MetricName, values);
    else if (type === 'gauge') metrics.set(name as MetricName, 1, values);
    else metrics.observe(name as MetricName, values, 0.1);
  }
  const text = await metrics.text();
  metrics.stop();
  return text;
}
