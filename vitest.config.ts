import { defineConfig } from 'vitest/config';

export default defineConfig({
  oxc: { decorator: { legacy: true, emitDecoratorMetadata: true } },
  test: {
    include: ['test/**/*.test.ts'],
    exclude: ['test/chaos/**', '**/node_modules/**'],
    // Modules are loaded once by each of the workers and not by each file: a third of the time went into that.
    isolate: false,
    testTimeout: 60_000,
    hookTimeout: 60_000,
    // More than there are cores: much of a test's time is spent waiting for other processes.
    maxWorkers: 3,
    // Each such test has processes of its own, and a server commonly takes a hundred connections.
    maxConcurrency: 1,
    globalSetup: ['test/support/global-setup.ts'],
  },
});
