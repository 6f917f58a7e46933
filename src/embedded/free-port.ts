// A loopback port that nobody listens on. Only a hint: somebody else may bind it first, so its user must be ready to
// ask again.

import { createServer } from 'node:net';

export function findFreePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const probe = createServer();
    probe.once('error', reject);
    probe.listen(0, '127.0.0.1', () => {
      const address = probe.address();
      probe.close(() => {
        if (address !== null && typeof address === 'object') resolve(address.port);
        // Unreachable: only pipes and closed servers lack an address with a port.
        else reject(new Error('a listening TCP server has no port'));
      });
    });
  });
}
