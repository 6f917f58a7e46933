// The long tests, which `npm test` leaves out: crashes, zombies, lost queues and replicas, random interleavings.
import { defineConfig } from 'vitest/config';

export default defineConfig({
  oxc: { decorator: { legacy: true, emitDecoratorMetadata: true } },
  test: {
    include: ['test/chaos/**/*.test.ts'],
    testTimeout: 600_000,
    hookTimeout: 60_000,
    // As for the others.
    maxWorkers: 3,
    maxConcurrency: 1,
    globalSetup: ['test/support/global-setup.ts'],
  },
});
