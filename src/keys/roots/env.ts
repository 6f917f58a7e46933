// Root keys from the environment: `env:NAME`, 64 hexadecimal characters. The variable is removed once read, so that
// diagnostic reports and child processes do not inherit it; the kernel's copy in /proc stays (see docs/format.md).
import { createRootKey } from '../../crypto/root-key.js';
import { demandRandomLooking, hexKeyLength, parseHexKey, refused, unavailable } from './key-bytes.js';
import type { RootKeyProvider } from './root-key.js';

const variableName = /^[A-Za-z_][A-Za-z0-9_]*$/;

export const envRootKeyProvider: RootKeyProvider = {
  scheme: 'env',
  async open(name, { cluster, env, onBytes }) {
    if (!variableName.test(name)) throw refused('env:', 'expected the name of an environment variable after env:');
    const source = `env:${name}`;
    const value = env[name];
    if (value === undefined || value === '') {
      throw unavailable(source, `the variable is not set; set it to ${hexKeyLength} hexadecimal characters`);
    }
    delete env[name];
    // UTF-8, not latin1: a character beyond ASCII must not turn into a digit.
    const digits = Buffer.from(value, 'utf8');
    try {
      const bytes = parseHexKey(digits, source);
      demandRandomLooking(bytes, source);
      onBytes?.(bytes);
      return createRootKey(bytes, cluster);
    } finally {
      digits.fill(0);
    }
  },
};
