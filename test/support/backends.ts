// Which queue backends this test run can exercise.

import { inject } from 'vitest';

export type Backend = 'postgres' | 'redis';

/** PostgreSQL always; Redis where global setup was given or found one. */
export function availableBackends(): readonly Backend[] {
  return inject('redisUrl') === undefined ? ['postgres'] : ['postgres', 'redis'];
}
