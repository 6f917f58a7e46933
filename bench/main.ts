// All figures, each in a process of its own so that none warms another up. Ratios are taken within one run; absolute rates
// are printed for orientation only.
import { spawnSync } from 'node:child_process';
import { nativeAddon } from '../src/crypto/native-addon.js';

const benchmarks = ['bulk', 'rowwise', 'processes', 'roots', 'fence'];
/** By name alone: over a minute, and a figure only on a machine that does nothing else. */
const others = ['load'];
const known = [...benchmarks, ...others];
const wanted = process.argv.slice(2);

/** Measured on node:crypto alone too, where the native path is built. */
const onBothPaths = ['bulk', 'rowwise'];

for (const name of wanted.length > 0 ? wanted : benchmarks) {
  if (!known.includes(name)) {
    process.stderr.write(`bench: there is no benchmark "${name}"; known: ${known.join(', ')}\n`);
    process.exit(2);
  }
  if (onBothPaths.includes(name) && nativeAddon !== undefined) measure(name, { KEYTURN_CRYPTO: 'node' });
  measure(name, {});
}

function measure(name: string, environment: Readonly<Record<string, string>>): void {
  const { status } = spawnSync(process.execPath, [new URL(`${name}.js`, import.meta.url).pathname], {
    stdio: 'inherit',
    env: { ...process.env, ...environment },
  });
  if (status !== 0) process.exit(status ?? 1);
}
