// The verbs that a schedule's policy consists of, for the supervisor that carries it out: each may be repeated after any
// failure. The root key is opened when a key is made, and by no other step.
import type { PolicyVerbs } from '../engine/advance-occurrence.js';
import { getKeyring } from '../store/keys.js';
import { retireContained } from './compromise.js';
import type { ControlContext } from './context.js';
import { activate, activeSince, retire, stageKey } from './keys.js';
import { reencryptToActive, type RunnerSupply } from './rotate-and-reencrypt.js';

/** The supervisor has other things to look after, and is to end soon when it is told to. */
const patienceMs = 10_000;

/** A run waits for its workers by itself. */
const noSupply: RunnerSupply = { require: async () => undefined, start: async () => undefined };

export function createPolicyVerbs(given: Omit<ControlContext, 'patienceMs'>): PolicyVerbs {
  const context: ControlContext = { ...given, patienceMs };
  const { database } = context;
  return {
    async rotate({ keyring, reason, since }) {
      const staged = await stageKey(context, keyring, reason, { isOrdered: true, unlessActivatedSince: since });
      // Between staging and here another supervisor or an operator may have activated it.
      if (activeSince(await getKeyring(database, keyring), since) !== undefined) return;
      await activate(context, keyring, String(staged.key.id), reason);
    },
    async reencrypt({ keyring, reason }) {
      const { report } = await reencryptToActive(context, { keyring, reason, supply: noSupply });
      return report.run_id;
    },
    async retireReplaced({ keyring, reason }) {
      const { keys } = await getKeyring(database, keyring);
      const active = keys.find((key) => key.state === 'active');
      for (const key of keys) {
        const isReplaced = key.state === 'decrypt_only' && active !== undefined && key.version < active.version;
        if (isReplaced) await retire(context, keyring, String(key.id), reason);
      }
    },
    async retireCompromised({ keyring, keyId, reason }) {
      await retireContained(context, keyring, keyId, reason);
    },
  };
}
