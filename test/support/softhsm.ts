// A PKCS#11 token in software (SoftHSM), in a folder of its own: root keys made in it cannot leave it.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';

const checkout = resolve(import.meta.dirname, '../..');
/** Installed apart from the package's own dependencies, since it is compiled. */
export const bindingFolder = join(checkout, 'test/pkcs11/node_modules');
const libraries = [
  '/usr/lib/softhsm/libsofthsm2.so',
  '/usr/lib64/pkcs11/libsofthsm2.so',
  '/opt/homebrew/lib/softhsm/libsofthsm2.so',
];

export const tokenPin = 'pin-of-the-test-token';

/** What must be installed first; undefined when nothing must. */
export function missingForSoftHsm(): string | undefined {
  if (!libraries.some((path) => existsSync(path))) return 'install SoftHSM: apt-get install softhsm2';
  if (!existsSync(join(bindingFolder, 'pkcs11js/build/Release/pkcs11.node'))) return 'run: cd test/pkcs11 && npm ci';
  return undefined;
}

export interface SoftHsm {
  readonly env: Readonly<Record<string, string>>;
  readonly pinFile: string;
  /** The URI of a key, without a PIN. */
  uri(label: string, token?: string): string;
  addKey(label: string, traits?: KeyTraits): void;
  removeKey(label: string): void;
  close(): void;
}

export interface KeyTraits {
  readonly bytes?: number;
  readonly extractable?: boolean;
  readonly sensitive?: boolean;
}

export function startSoftHsm(): SoftHsm {
  const library = libraries.find((path) => existsSync(path));
  if (library === undefined) throw new Error('there is no SoftHSM');
  const folder = mkdtempSync(join(tmpdir(), 'keyturn-softhsm-'));
  mkdirSync(join(folder, 'tokens'));
  const conf = join(folder, 'softhsm2.conf');
  writeFileSync(conf, `directories.tokendir = ${folder}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n`);
  const pinFile = join(folder, 'pin');
  writeFileSync(pinFile, `${tokenPin}\n`, { mode: 0o600 });
  const env = { SOFTHSM2_CONF: conf };
  execFileSync(
    'softhsm2-util',
    ['--init-token', '--free', '--label', 'keyturn test', '--pin', tokenPin, '--so-pin', 'security officer'],
    {
      env: { ...process.env, ...env },
      stdio: 'ignore',
    },
  );
  const inToken = (step: object): void => {
    execFileSync(
      process.execPath,
      [join(checkout, 'test/pkcs11/token-step.cjs'), library, tokenPin, JSON.stringify(step)],
      {
        env: { ...process.env, ...env },
      },
    );
  };
  return {
    env,
    pinFile,
    uri: (label, token = 'keyturn test') =>
      `pkcs11:token=${encodeURIComponent(token)};object=${encodeURIComponent(label)}?module-path=${library}`,
    addKey: (label, traits = {}) => inToken({ add: label, ...traits }),
    removeKey: (label) => inToken({ remove: label }),
    close: () => rmSync(folder, { recursive: true, force: true }),
  };
}
