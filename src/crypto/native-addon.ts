// The native batch path, where it was built (`npm run build:native`): native/ of this package, over the OpenSSL that Node
// itself exports. Without it everything runs on node:crypto, to the same bytes.
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';

/** A key in native memory, wiped when the collector takes this object. */
declare const nativeKey: unique symbol;
export interface NativeKey {
  readonly [nativeKey]: true;
}

/** Every array is checked against the others: RangeError where one does not fit. */
export interface NativeAddon {
  readonly interface: number;
  /** `material`: 32 bytes, copied. */
  createKey(isXaes: boolean, material: Uint8Array): NativeKey;
  /** `sealed` from `at` on: the nonce, as given; then room for ciphertext and tag. */
  seal(key: NativeKey, sealed: Uint8Array, at: number, associatedData: Uint8Array, plaintext: Uint8Array): void;
  /** Writes the plaintext; zeros and false where the tag does not match. */
  unseal(key: NativeKey, sealed: Uint8Array, at: number, associatedData: Uint8Array, plaintext: Uint8Array): boolean;
  /**
   * Opens envelopes under `from`, seals them under `to` behind `header` and a nonce each, opens them again and compares.
   * `values`: envelope and fields of each, one behind the other, `lengths` the bytes of both. Associated data is the first
   * `lead` bytes of the fields, header and nonce, the rest of the fields. `replacements`: room for the new envelopes.
   */
  reencrypt(
    from: NativeKey,
    to: NativeKey,
    header: Uint8Array,
    lead: number,
    nonces: Uint8Array,
    values: Uint8Array,
    lengths: Uint32Array,
    replacements: Uint8Array,
    outcomes: Uint8Array,
  ): void;
}

/** What the addon writes for a value. */
export const nativeOutcomes = { reencrypted: 0, authenticationFailed: 1, verificationFailed: 2 } as const;

/** Raised with every change of the addon's functions: a build of older sources is not used. */
const expectedInterface = 1;

type Loaded = { readonly addon: NativeAddon } | { readonly addon: undefined; readonly reason: string };

const loaded = load();

export const nativeAddon: NativeAddon | undefined = loaded.addon;

/** One line for operators: which path encrypts, and why not the native one. */
export function describeCrypto(): string {
  return loaded.addon === undefined ? `node:crypto (${loaded.reason})` : 'the native batch path';
}

function load(): Loaded {
  if (process.env['KEYTURN_CRYPTO'] === 'node') return { addon: undefined, reason: 'KEYTURN_CRYPTO is node' };
  const require = createRequire(import.meta.url);
  try {
    const root = dirname(require.resolve('keyturn/package.json'));
    const addon = require(join(root, 'native', 'build', 'Release', 'keyturn_native.node')) as NativeAddon;
    if (addon.interface === expectedInterface) return { addon };
    return { addon: undefined, reason: 'the native batch path was built from other sources' };
  } catch (error) {
    const isMissing = error instanceof Error && 'code' in error && error.code === 'MODULE_NOT_FOUND';
    return { addon: undefined, reason: `the native batch path ${isMissing ? 'is not built' : 'cannot be loaded'}` };
  }
}
