// The safeguards of the write path, each taken out by one replacement of text, and the test that must then fail.

export interface Mutation {
  /** What is taken out. */
  readonly removes: string;
  readonly file: string;
  /** Stands in the file exactly once. */
  readonly text: string;
  readonly replacement: string;
  readonly test: { readonly file: string; readonly name: string };
}

function guard(name: string): Mutation['test'] {
  return { file: 'test/integration/guarding-writes.test.ts', name };
}

export const mutations: readonly Mutation[] = [
  {
    removes: 'the condition of the UPDATE that the envelope is the one that was read',
    file: 'src/store/cells.ts',
    text: "WHERE ${joinOnKey} AND ${conditions.join(' AND ')} RETURNING",
    replacement: "WHERE ${joinOnKey} AND (true OR ${conditions.join(' AND ')}) RETURNING",
    test: guard('I3 a value that the application writes between read and write of its slice stays'),
  },
  {
    removes: 'the follow-up for cells that lost a race',
    file: 'src/engine/reencrypt-batch.ts',
    text: 'if (failedFor === undefined) await insertFollowUp(',
    replacement: 'if (failedFor !== undefined) await insertFollowUp(',
    test: guard('I3 a value that the application writes between read and write of its slice stays'),
  },
  {
    removes: 'the follow-up for rows that the application holds locked',
    file: 'src/engine/reencrypt-batch.ts',
    text: 'await insertFollowUp(client, visit, unwrittenCells(slice, busy),',
    replacement: 'await insertFollowUp(client, visit, [],',
    test: guard('I3 a row that the application holds locked is visited again in a follow-up batch'),
  },
  {
    removes: 'the difference between a row that is locked and one that has changed',
    file: 'src/engine/rewrite-rows.ts',
    text: 'busy: missing(stale, locked)',
    replacement: 'busy: new Set()',
    test: guard(
      'a row that the application keeps locked is waited for without limit, one that it changes at every visit is quarantined',
    ),
  },
  {
    removes: 'the lease token from the condition under which a batch advances',
    file: 'src/store/batches.ts',
    text: "WHERE id = $1 AND lease_token = $2 AND state = 'running'\n       RETURNING id, slices, run_id",
    replacement:
      "WHERE id = $1 AND (lease_token = $2 OR true) AND state = 'running'\n       RETURNING id, slices, run_id",
    test: guard('I4 a slice whose lease another worker holds by now is rolled back'),
  },
  {
    removes: 'the rollback of a slice whose lease is lost',
    file: 'src/engine/reencrypt-batch.ts',
    text: 'if (advanced === undefined) throw new LeaseLost();',
    replacement:
      'if (advanced === undefined) return { standing: batch.standing, report: { ...entry, kind: batch.kind, bytes: 0 } };',
    test: guard('I4 a slice whose lease another worker holds by now is rolled back'),
  },
  {
    removes: 'the ledger from the transaction that changes the rows',
    file: 'src/engine/reencrypt-batch.ts',
    text: 'await advanceIfLeased(client, {',
    replacement: 'await advanceIfLeased(services.database, {',
    test: guard('I4 when a commit fails neither rows nor ledger have moved'),
  },
  {
    removes: 'the ledger entry of a slice',
    file: 'src/store/batches.ts',
    text: '$12, $13, $14, $15, $16 FROM advanced)',
    replacement: '$12, $13, $14, $15, $16 FROM advanced WHERE false)',
    test: guard('I4 a batch that is handed back goes on behind its last slice'),
  },
  {
    removes: 'the advance of the cursor',
    file: 'src/store/batches.ts',
    text: 'SET cursor_key = $3, slices',
    replacement: 'SET cursor_key = CASE WHEN false THEN $3::text[] END, slices',
    test: guard('I4 a batch that is handed back goes on behind its last slice'),
  },
  {
    removes: 'the comparison of what was written with what was read',
    file: 'src/codec.ts',
    text: 'areSame[index] = again.equals(plaintext);',
    replacement: 'areSame[index] = again.equals(plaintext) || true;',
    test: {
      file: 'test/codec.test.ts',
      name: "['node:crypto'] reencrypting a replacement that does not decrypt to the plaintext it came from is not written",
    },
  },
  {
    removes: 'the generation from the condition under which a batch is claimed',
    file: 'src/store/batches.ts',
    text: 'WHERE b.id = $1 AND b.generation = $2 AND',
    replacement: 'WHERE b.id = $1 AND (b.generation = $2 OR true) AND',
    test: guard('I4 each dispatch has a generation of its own, and the job of an earlier one is dropped'),
  },
  {
    removes: 'the new generation of a dispatch',
    file: 'src/store/batches.ts',
    text: "state = 'dispatched', generation = generation + 1,",
    replacement: "state = 'dispatched',",
    test: guard('I4 each dispatch has a generation of its own, and the job of an earlier one is dropped'),
  },
  {
    removes: 'the fencing token of the leader',
    file: 'src/store/leadership.ts',
    text: 'AND holder = $1 AND fencing_token = $2 FOR UPDATE',
    replacement: 'AND (holder = $1 AND fencing_token = $2 OR true) FOR UPDATE',
    test: guard('a supervisor that has been replaced changes nothing'),
  },
  {
    removes: 'the wait for laggards before a key is activated',
    file: 'src/engine/converge.ts',
    text: 'const laggards = findLaggards(await listMembers(database), requirement);',
    replacement: 'const laggards = findLaggards([], requirement);',
    test: guard('I5 a key is not activated before every live member holds it'),
  },
  {
    removes: 'the look, under the lock, whether another command has rotated already',
    file: 'src/control/keys.ts',
    text: 'if (replacing === undefined || active?.id === replacing) return;',
    replacement: 'if (replacing === undefined || active?.id === replacing || true) return;',
    test: {
      file: 'test/integration/one-key-at-a-time.test.ts',
      name: 'I5 of two commands that find a rotation due at the same time one makes it and both go on with one run: the one far ahead of the other',
    },
  },
  {
    removes: 'the look whether a suspect root key ever wrapped the standby',
    file: 'src/control/keys.ts',
    text: 'return !(await isExposed(client, keyring, staged));',
    replacement: 'return !(await isExposed(client, keyring, staged)) || true;',
    test: {
      file: 'test/integration/replacing-exposed-keys.test.ts',
      name: 'I10 the replacement of a leaked root leaves a data key and an audit key that it never wrapped, and ends what it did',
    },
  },
  {
    removes: 'the wait for laggards before a run moves anything',
    file: 'src/engine/advance-run.ts',
    text: 'const [laggard] = findLaggards(await listMembers(database), {',
    replacement: 'const [laggard] = findLaggards([], {',
    test: guard('I5 a run moves nothing while a live member still writes with another key'),
  },
  {
    removes: 'the passing over of rows that the application holds locked',
    file: 'src/store/cells.ts',
    text: 'FOR NO KEY UPDATE OF t SKIP LOCKED',
    replacement: 'FOR NO KEY UPDATE OF t',
    test: {
      file: 'test/integration/contending-for-locks.test.ts',
      name: 'a transaction that holds a row of a slice and then asks for an earlier one waits, and neither side dies',
    },
  },
  {
    removes: 'the lease token from the condition under which a batch is split',
    file: 'src/store/batches.ts',
    text: "WHERE id = $1 AND lease_token = $2 AND state = 'running'`,\n    [batch.id, batch.leaseToken, error],",
    replacement:
      "WHERE id = $1 AND (lease_token = $2 OR true) AND state = 'running'`,\n    [batch.id, batch.leaseToken, error],",
    test: {
      file: 'test/integration/splitting-batches.test.ts',
      name: 'I4 is quarantined by its key, of ranges and lists alike, and a lost lease leaves everything as it was',
    },
  },
  {
    removes: 'the new start of a scan whose key is no longer the active one',
    file: 'src/engine/advance-run.ts',
    text: "if (run.state === 'verifying') await startOver(client, run, cause);",
    replacement: '',
    test: {
      file: 'test/integration/following-the-active-key.test.ts',
      name: 'a run whose active key changes after the last batch of its scan succeeds only with every cell under the newest key',
    },
  },
  {
    removes: 'the one snapshot in which the second scan looks at a slice',
    file: 'src/engine/reencrypt-batch.ts',
    text: 'BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;',
    replacement: 'BEGIN READ ONLY;',
    test: {
      file: 'test/integration/verifying.test.ts',
      name: 'a row that is deleted or inserted between two statements about a slice hides no other from the scan',
    },
  },
  {
    removes: 'the deferral that makes the head of the chain the last lock',
    file: 'src/store/migrations/0001-control-schema.ts',
    text: 'AFTER INSERT ON keyturn.audit DEFERRABLE INITIALLY DEFERRED',
    replacement: 'AFTER INSERT ON keyturn.audit NOT DEFERRABLE',
    test: {
      file: 'test/integration/auditing.test.ts',
      name: 'two transactions that record in the opposite order of their locks both commit: the head is taken last',
    },
  },
  {
    removes: 'the condition that a member row is written by its own login alone',
    file: 'src/store/migrations/0001-control-schema.ts',
    text: 'SET heartbeat_at = clock_timestamp() WHERE m.login = session_user;',
    replacement: 'SET heartbeat_at = clock_timestamp();',
    test: {
      file: 'test/integration/roles.test.ts',
      name: 'an application touches its own member row alone: no other login, no worker, no supervisor',
    },
  },
  {
    removes: 'the comparison of the fence before and after the scan of a retirement',
    file: 'src/control/keys.ts',
    text: 'refuseIfTouched(fences, now, Number(key.id));',
    replacement: '',
    test: {
      file: 'test/integration/destroying-keys.test.ts',
      name: 'a fence that is lowered and raised again during the scan I6 does not let the key retire',
    },
  },
  {
    removes: 'the comparison of the fence before and after the scan of a destruction',
    file: 'src/control/destroy-key.ts',
    text: 'refuseIfTouched(fences, now, keyId);',
    replacement: '',
    test: {
      file: 'test/integration/destroying-keys.test.ts',
      name: 'a fence that is lowered and raised again during the scan I6 does not let the key be destroyed',
    },
  },
  {
    removes: 'the condition that another login approves a destruction',
    file: 'src/store/migrations/retirement-statements.ts',
    text: 'IF session_user = OLD.requested_by THEN',
    replacement: 'IF false AND session_user = OLD.requested_by THEN',
    test: {
      file: 'test/integration/destroying-keys.test.ts',
      name: 'one login alone I6 gets to no destroyed key by plain SQL, though it owns the schema',
    },
  },
  {
    removes: 'the waiting time from the conditions of an approval',
    file: 'src/store/migrations/retirement-statements.ts',
    text: 'IF clock_timestamp() < OLD.not_before OR',
    replacement: 'IF',
    test: {
      file: 'test/integration/destroying-keys.test.ts',
      name: 'destroying a key I6 I10 takes a request, the waiting time and another login; the row stays, and each step is recorded',
    },
  },
  {
    removes: 'the refusal to finalize a root change while a live member could not start',
    file: 'src/control/roots.ts',
    text: 'refuseLaggards(await laggardsLeft(client, ids, kept, override), ending, kept);',
    replacement: '',
    test: {
      file: 'test/integration/changing-roots.test.ts',
      name: 'a root change that cannot happen a live member refuses rotate, which has no time to give it',
    },
  },
  {
    removes: 'the unwrapping of every data key before a root change is finalized',
    file: 'src/engine/rewrap.ts',
    text: 'kept.key.unwrap(kept.id, identity, commitment, first ?? Buffer.alloc(0)),',
    replacement: 'Promise.resolve({ identity, commitment, first }),',
    test: {
      file: 'test/integration/changing-roots.test.ts',
      name: 'a root change that cannot happen finalize opens every data key with the new root key first: one that does not open keeps the former root key',
    },
  },
  {
    removes: 'what a merge never undoes: destroyed and compromised',
    file: 'src/keys/merge-backup.ts',
    text: "if (older.state === 'destroyed' && newer.state !== 'destroyed') return older;",
    replacement: '',
    test: {
      file: 'test/keys/merge-backup.test.ts',
      name: 'merging never undoes a destruction, nor that a key was compromised, whichever is newer',
    },
  },
  {
    removes: 'that a restored key of a limited algorithm counts as spent',
    file: 'src/keys/merge-backup.ts',
    text: 'return isBehind ? limit : undefined;',
    replacement: 'return isBehind ? undefined : undefined;',
    test: {
      file: 'test/keys/merge-backup.test.ts',
      name: 'merging counts a key of a limited algorithm as spent where nobody counted what came after the backup, and only there',
    },
  },
  {
    removes: 'that a key waiting for its destruction is restored as retired',
    file: 'src/store/backups.ts',
    text: "if (from === undefined) return to === 'pending_destruction' ? 'retired' : to;",
    replacement: 'if (from === undefined) return to;',
    test: {
      file: 'test/integration/backing-up.test.ts',
      name: 'a bare machine takes a key that waited for its destruction as a retired one, which may be restored or asked for anew',
    },
  },
  {
    removes: 'the refusal of an envelope in place of a plaintext',
    file: 'src/orm/entity-cells.ts',
    text: 'if (isEnvelope(keyring, cell, value))',
    replacement: 'if (isEnvelope(keyring, cell, undefined))',
    test: {
      file: 'test/integration/encrypting-entities.test.ts',
      name: 'I8 an envelope in place of a plaintext is refused, so that it is not encrypted again',
    },
  },
  {
    removes: 'the guard of the tenant from what changes a relation',
    file: 'src/orm/select-builder.ts',
    text: 'return new EncryptingRelationQueryBuilder(super.relation(...(given as [EntityTarget<ObjectLiteral>, string])));',
    replacement: 'return super.relation(...(given as [EntityTarget<ObjectLiteral>, string]));',
    test: {
      file: 'test/integration/encrypting-entities.test.ts',
      name: 'I2 a tenant that is a relation is bound like any other, and relation() cannot change it alone',
    },
  },
  {
    removes: 'the waiting of lazy upgrades for their rate',
    file: 'src/engine/lazy-upgrade.ts',
    text: 'if (chosen === undefined) return gatherMs;',
    replacement: 'if (chosen === undefined) {\n        allowedAtMs.clear();\n        return 0;\n      }',
    test: {
      file: 'test/integration/upgrading-lazily.test.ts',
      name: 'a low rate costs few statements, however many rows wait, and closing goes on when it may',
    },
  },
  {
    removes: 'the opening again of what the native path has made',
    file: 'native/addon.cc',
    text: 'verified == Outcome::kDone && CRYPTO_memcmp(plain, again, length) == 0;',
    replacement: 'true;',
    test: {
      file: 'test/crypto/native-addon.test.ts',
      name: 'the native addon what was damaged between sealing and opening again is not taken for reencrypted',
    },
  },
];
