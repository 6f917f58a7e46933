// A shop whose root key is about to change: control and members with the present root key, the next one, or both.
import { randomBytes } from 'node:crypto';
import { openControl, openKeyturn, type Keyturn } from '../../src/app.js';
import type { ConfigFile } from '../../src/config.js';
import type { ControlContext, OpenControl } from '../../src/control/context.js';
import { openShop, shopConfig, type Shop } from './shop.js';

export const nextUri = 'env:KEYTURN_NEXT_ROOT';
export const otherUri = 'env:KEYTURN_OTHER_ROOT';

export type Roots = 'present' | 'next' | 'both';

export interface RootedShop {
  readonly shop: Shop;
  /** Holds the present, the next and another root key. */
  readonly context: ControlContext;
  /** A process that knows no more than these. */
  environment(roots: Roots): Record<string, string>;
  config(roots: Roots): ConfigFile;
  /** Not closed by `close`. */
  open(roots: Roots, name?: string): Promise<Keyturn>;
  /** Another operator's process, with the same root keys. Closed by `close`. */
  control(roots?: Roots): OpenControl;
  close(): Promise<void>;
}

export async function openRootedShop(config: ConfigFile = shopConfig): Promise<RootedShop> {
  const shop = await openShop({ config });
  const [next, other] = [randomBytes(32).toString('hex'), randomBytes(32).toString('hex')];
  const controls: OpenControl[] = [];

  const environment = (roots: Roots): Record<string, string> => {
    const { KEYTURN_ROOT_KEY: present = '', ...rest } = shop.environment();
    return {
      ...rest,
      ...(roots === 'next' ? {} : { KEYTURN_ROOT_KEY: present }),
      ...(roots === 'present' ? {} : { KEYTURN_NEXT_ROOT: next }),
    };
  };
  const configFor = (roots: Roots): ConfigFile => ({
    ...config,
    keyrings: Object.fromEntries(
      Object.keys(config.keyrings).map((name) => [
        name,
        {
          roots:
            roots === 'both'
              ? [nextUri, 'env:KEYTURN_ROOT_KEY']
              : [roots === 'next' ? nextUri : 'env:KEYTURN_ROOT_KEY'],
        },
      ]),
    ),
  });
  const control = (roots: Roots = 'both'): OpenControl => {
    const opened = openControl({
      environment: { ...environment(roots), ...(roots === 'both' ? { KEYTURN_OTHER_ROOT: other } : {}) },
      file: config,
    });
    controls.push(opened);
    return opened;
  };
  return {
    shop,
    context: { ...control().context, patienceMs: 200 },
    environment,
    config: configFor,
    open: (roots, name = 'test') => openKeyturn({ config: configFor(roots), environment: environment(roots), name }),
    control,
    async close() {
      for (const opened of controls) await opened.close();
      await shop.close();
    },
  };
}
