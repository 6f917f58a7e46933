// Application processes that read and write while their root key changes (test/children/rooted-app.ts).
import { startChild, type Child } from './child.js';
import type { RootedShop, Roots } from './roots.js';

const deadlineMs = 30_000;

/** Works on customer `id` alone, from now on. */
export async function startRootedApp(rooted: RootedShop, id: number, roots: Roots): Promise<Child> {
  const child = startChild('rooted-app', {
    env: rooted.environment(roots),
    onlyEnv: true,
    args: [JSON.stringify(rooted.config(roots)), String(id)],
  });
  await child.waitForLine(/^working/, deadlineMs);
  return child;
}

/** How often it has written and read; throws when one operation failed. */
export async function stopRootedApp(child: Child): Promise<number> {
  child.kill('SIGTERM');
  const [, done] = await child.waitForLine(/^worked: (\d+) times$/, deadlineMs);
  const { code } = await child.waitForExit(deadlineMs);
  if (code !== 0) throw new Error(`pid ${child.pid} ended with ${code}: ${child.stderr()}`);
  return Number(done);
}
