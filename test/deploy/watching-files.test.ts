// The alert rules and the dashboard speak of metrics that exist, with labels they have, and lead to pages that exist.
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { metricTable, type MetricDefinition } from '../../src/telemetry/metrics.js';
import { hasPrometheus } from '../support/prometheus.js';

const checkout = join(import.meta.dirname, '..', '..');
const folder = join(checkout, 'deploy', 'prometheus');
const table: Readonly<Record<string, MetricDefinition>> = metricTable;

interface Rule {
  readonly alert: string;
  readonly expr: string;
  readonly labels: { readonly severity: string };
  readonly annotations: { readonly summary: string; readonly runbook: string };
}

const { groups } = parse(readFileSync(join(folder, 'alerts.yml'), 'utf8')) as { groups: { rules: Rule[] }[] };
const rules = groups.flatMap((group) => group.rules);

const dashboard = JSON.parse(readFileSync(join(checkout, 'deploy', 'grafana', 'keyturn.json'), 'utf8')) as {
  panels: { title: string; targets: { expr: string; legendFormat: string }[] }[];
};
const targets = dashboard.panels.flatMap((panel) => panel.targets);
const expressions = [...rules.map((rule) => rule.expr), ...targets.map((target) => target.expr)];

/** Metrics an expression names, a histogram's parts as the histogram. */
function metricsIn(expression: string): string[] {
  return [...expression.matchAll(/\bkeyturn_\w+/g)].map(([name]) =>
    table[name] === undefined ? name.replace(/_(bucket|sum|count)$/, '') : name,
  );
}

describe('the files that watch', () => {
  test('every metric that a rule or a panel names exists', () => {
    expect(expressions.filter((expression) => metricsIn(expression).some((name) => table[name] === undefined))).toEqual(
      [],
    );
    expect(expressions.filter((expression) => metricsIn(expression).length === 0)).toEqual([
      'up{job=~"keyturn-.*"} == 0',
    ]);
  });

  test('every label that a rule or a panel selects or groups by is one that its metrics have', () => {
    const unknown = expressions.flatMap((expression) => {
      const known = new Set([
        'instance',
        'job',
        'le',
        ...metricsIn(expression).flatMap((name) => table[name]?.labels ?? []),
      ]);
      const named = [
        ...[...expression.matchAll(/\bby \(([^)]*)\)/g)].flatMap((match) => (match[1] ?? '').split(',')),
        ...[...expression.matchAll(/[{,]\s*(\w+)\s*(?:=~|!~|!=|=)/g)].map((match) => match[1] ?? ''),
      ];
      return named.map((name) => name.trim()).filter((name) => !known.has(name));
    });
    expect(unknown).toEqual([]);
  });

  test('every metric but those of the process itself is on the dashboard or in an alert', () => {
    const shown = new Set(expressions.flatMap(metricsIn));
    const unseen = Object.keys(table).filter((name) => !shown.has(name));
    expect(unseen).toEqual([
      'keyturn_process_info',
      'keyturn_held_generation',
      'keyturn_run_rows',
      'keyturn_keyring_generation',
    ]);
  });

  test('every alert has a severity, a summary, and a section of its own in docs/operating.md', () => {
    const page = readFileSync(join(checkout, 'docs', 'operating.md'), 'utf8');
    const anchors = [...page.matchAll(/^#+ (.*)$/gm)].map((match) =>
      (match[1] ?? '')
        .toLowerCase()
        .replaceAll(/[^\w\- ]/g, '')
        .replaceAll(' ', '-'),
    );
    for (const rule of rules) {
      expect(['warning', 'critical']).toContain(rule.labels.severity);
      expect(rule.annotations.summary).toMatch(/\S/);
      expect(rule.annotations.runbook).toBe(`docs/operating.md#${rule.alert.toLowerCase()}`);
      expect(anchors).toContain(rule.alert.toLowerCase());
    }
  });

  test('every alert has a unit test that makes it fire and one in which it does not', () => {
    const { tests } = parse(readFileSync(join(folder, 'alerts.test.yml'), 'utf8')) as {
      tests: { alert_rule_test: { alertname: string; exp_alerts?: unknown[] }[] }[];
    };
    const checks = tests.flatMap((unit) => unit.alert_rule_test);
    for (const fires of [true, false]) {
      const tested = checks.filter((check) => (check.exp_alerts?.length ?? 0) > 0 === fires);
      expect(rules.filter((rule) => !tested.some((check) => check.alertname === rule.alert))).toEqual([]);
    }
  });

  test('promtool accepts configuration and rules, and their unit tests pass', (context) => {
    if (!hasPrometheus()) return context.skip('promtool is not installed');
    for (const args of [
      ['check', 'config', 'prometheus.yml'],
      ['check', 'rules', 'alerts.yml'],
      ['test', 'rules', 'alerts.test.yml'],
    ]) {
      const { status, stdout, stderr } = spawnSync('promtool', args, { cwd: folder, encoding: 'utf8' });
      expect({ args, status, said: status === 0 ? '' : stdout + stderr }).toEqual({ args, status: 0, said: '' });
    }
  });

  test('every panel of the dashboard has a title of its own and something to show', () => {
    const titles = dashboard.panels.map((panel) => panel.title);
    expect(new Set(titles).size).toBe(titles.length);
    expect(dashboard.panels.filter((panel) => panel.targets.length === 0)).toEqual([]);
  });
});
