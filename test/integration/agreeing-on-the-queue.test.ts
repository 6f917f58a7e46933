// Processes that would talk past each other find out: another backend, another server, a queue without a supervisor.
import { afterEach, describe, expect, test } from 'vitest';
import { requireRunners } from '../../src/control/runs.js';
import { openBatchQueue } from '../../src/queue/jobs.js';
import { queueAddressOf } from '../../src/queue/address.js';
import { startSupervisorProcess, startWorker } from '../../src/app-runners.js';
import { Secret } from '../../src/crypto/secret.js';
import { getClusterId } from '../../src/store/keys.js';
import { hasLeader } from '../../src/store/leadership.js';
import { findQueueRecord } from '../../src/store/queue-record.js';
import { availableBackends } from '../support/backends.js';
import { openShop, type Shop } from '../support/shop.js';
import { until } from '../support/until.js';

let shop: Shop;
afterEach(() => shop.close());

describe.each(availableBackends())('a cluster on the %s queue', (backend) => {
  test(`refuses with QUEUE_MISMATCH a worker that means another server, and a supervisor that would move live workers [${backend}]`, async () => {
    shop = await openShop({ backend });
    await shop.startSupervisor();
    await shop.startWorker();
    const record = await findQueueRecord(shop.control.context.database);
    expect(record).toMatchObject({ backend });

    const other = backend === 'redis' ? shop.url : 'redis://127.0.0.1:1';
    const environment = { ...shop.environment(), REDIS_URL: backend === 'redis' ? '' : other };
    await expect(startWorker({ environment, name: 'stranger' })).rejects.toMatchObject({ code: 'QUEUE_MISMATCH' });
    // A supervisor looks into its own queue first, which may not even answer.
    await expect(startSupervisorProcess({ environment, name: 'stranger' })).rejects.toMatchObject({
      code: expect.stringMatching(/^QUEUE_(MISMATCH|UNAVAILABLE)$/),
    });
    expect(await findQueueRecord(shop.control.context.database)).toEqual(record);
  });

  test(`refuses with QUEUE_MISMATCH a worker whose queue carries another cluster's marker [${backend}]`, async () => {
    shop = await openShop({ backend });
    await (await shop.startSupervisor()).stop();
    const environment = shop.environment();
    const redis = environment['REDIS_URL'];
    const address = queueAddressOf(
      { redisUrl: redis === undefined ? undefined : new Secret(redis), databaseDirectUrl: new Secret(shop.url) },
      await getClusterId(shop.control.context.database),
    );
    const queue = openBatchQueue(address);
    await queue.placeMarker('00000000-0000-4000-8000-000000000000');
    await queue.close();
    await expect(shop.startWorker()).rejects.toMatchObject({ code: 'QUEUE_MISMATCH', kind: 'refused' });
  });

  test(`waiting for a run is refused with NO_WORKERS while a supervisor or a worker is missing, and says which [${backend}]`, async () => {
    shop = await openShop({ backend });
    await expect(requireRunners(shop.control.context)).rejects.toMatchObject({
      code: 'NO_WORKERS',
      message: expect.stringMatching(/keyturn supervisor.*keyturn worker.*--local/),
    });
    await shop.startSupervisor();
    await until(() => hasLeader(shop.control.context.database), { what: 'the supervisor to lead', deadlineMs: 10_000 });
    await expect(requireRunners(shop.control.context)).rejects.toMatchObject({
      code: 'NO_WORKERS',
      message: expect.not.stringMatching(/keyturn supervisor/),
    });
    await shop.startWorker();
    await requireRunners(shop.control.context);
  });
});
