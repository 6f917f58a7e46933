// How long workers rest beside an application, for any number of them and any server.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { noApplicationWatch, restBeside, watchApplication } from '../../src/rotation/beside-application.js';

const fleet = { workers: 1, cpus: undefined, isEmergency: false };
const busy = watchApplication(noApplicationWatch, [0, 1, 0, 0, 1, 0, 0, 0]);
const idle = watchApplication(noApplicationWatch, [0, 0, 0, 0, 0, 0, 0, 0]);

describe('beside an application that is at work', () => {
  test('a worker rests nine times as long as it works, and says why', () => {
    expect(restBeside(busy, fleet)).toEqual({
      nice: 9,
      reason: 'the application is at work (0.25 active sessions); workers rest 9 times as long as they work',
    });
  });

  test('where nobody else is at work, and in an emergency, it does not rest', () => {
    expect(restBeside(idle, fleet)).toBeUndefined();
    expect(restBeside(busy, { ...fleet, isEmergency: true })).toBeUndefined();
  });

  test('what cannot be seen, or was not looked at yet, counts as at work', () => {
    for (const watch of [undefined, noApplicationWatch])
      expect(restBeside(watch, fleet)).toEqual({
        nice: 9,
        reason: 'whether the application is at work cannot be seen; workers rest 9 times as long as they work',
      });
  });

  test('one busy look in ten seconds is chance, and what was long ago is forgotten', () => {
    let watch = busy;
    for (let look = 0; look < 9; look++) watch = watchApplication(watch, [0, 0, 0, 0, 0, 0, 0, look === 3 ? 1 : 0]);
    expect(restBeside(watchApplication(watch, [0, 0, 0, 0, 0, 0, 0, 0]), fleet)).toBeUndefined();
  });

  test('all workers together work as much as a twentieth of the processors would', () => {
    fc.assert(
      fc.property(fc.nat(200), fc.integer({ min: 1, max: 256 }), (workers, cpus) => {
        const nice = restBeside(busy, { ...fleet, workers, cpus })?.nice ?? 0;
        const atWork = workers / (1 + nice);
        expect(atWork).toBeLessThanOrEqual(cpus / 20 + 1e-9);
        expect(nice === 0 || workers === 0 || Math.abs(atWork - cpus / 20) < 1e-6).toBe(true);
      }),
    );
  });
});
