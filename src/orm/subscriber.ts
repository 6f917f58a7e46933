// The one subscriber: decrypts what TypeORM has loaded, hands stale rows to lazy upgrades once their transaction has ended
// well, and stops a statement that would compare plaintext with ciphertext.
import type {
  BeforeQueryEvent,
  EntitySubscriberInterface,
  LoadEvent,
  QueryRunner,
  TransactionCommitEvent,
  TransactionRollbackEvent,
} from 'typeorm';
import { KeyturnError } from '../errors.js';
import type { RowKey, Target } from '../rotation/target.js';
import type { Installation } from './installation.js';
import { openEntity } from './open-entity.js';
import { findMarker } from './transformer.js';

/** Stale rows that one transaction may remember. */
const maxRemembered = 1_000;
const opensReadOnly =
  /^\s*(?:BEGIN|START\s+TRANSACTION|SET\s+(?:LOCAL\s+)?TRANSACTION|SET\s+SESSION\s+CHARACTERISTICS)\b.*\bREAD\s+ONLY\b/is;

interface StaleRow {
  readonly target: Target;
  readonly key: RowKey;
}

export class KeyturnSubscriber implements EntitySubscriberInterface {
  readonly #installation: Installation;
  readonly #titles: ReadonlyMap<number, string>;
  readonly #isReadOnly: boolean;
  readonly #readOnly = new WeakSet<QueryRunner>();
  readonly #remembered = new WeakMap<QueryRunner, StaleRow[]>();

  /** `titles`: of the encrypted properties, by their transformer. */
  constructor(installation: Installation, titles: ReadonlyMap<number, string>, isReadOnly: boolean) {
    this.#installation = installation;
    this.#titles = titles;
    this.#isReadOnly = isReadOnly;
  }

  afterLoad(loaded: unknown, event?: LoadEvent<object>): Promise<void> | undefined {
    if (event === undefined || typeof loaded !== 'object' || loaded === null) return undefined;
    const metadata = event.metadata.findInheritanceMetadata(loaded);
    const entity = this.#installation.entityOf(metadata);
    if (entity === undefined) return undefined;
    return openEntity(this.#installation.keyrings, entity, loaded, (key) =>
      this.#offer(event.queryRunner, { target: entity.target, key }),
    );
  }

  beforeQuery(event: BeforeQueryEvent): void {
    const marker = event.parameters === undefined ? undefined : findMarker(event.parameters as unknown[]);
    if (marker !== undefined) {
      const title = this.#titles.get(marker) ?? 'an encrypted property';
      throw new KeyturnError(
        'VALUE_INVALID',
        `${title} is encrypted, and every envelope differs, so no row would match; find rows by another property (IsNull and Not(IsNull()) work)`,
        { property: title },
      );
    }
    if (opensReadOnly.test(event.query)) this.#readOnly.add(event.queryRunner);
  }

  afterTransactionCommit(event: TransactionCommitEvent): void {
    // The end of a savepoint is not yet the end.
    if (event.queryRunner.isTransactionActive) return;
    for (const { target, key } of this.#forget(event.queryRunner)) this.#installation.upgrades.offer(target, key);
  }

  afterTransactionRollback(event: TransactionRollbackEvent): void {
    this.#forget(event.queryRunner);
  }

  #offer(runner: QueryRunner, row: StaleRow): void {
    if (this.#isReadOnly || this.#readOnly.has(runner) || isReplica(runner)) return;
    if (!runner.isTransactionActive) {
      this.#installation.upgrades.offer(row.target, row.key);
      return;
    }
    const remembered = this.#remembered.get(runner) ?? [];
    this.#remembered.set(runner, remembered);
    if (remembered.length < maxRemembered) remembered.push(row);
  }

  #forget(runner: QueryRunner): readonly StaleRow[] {
    const remembered = this.#remembered.get(runner) ?? [];
    this.#remembered.delete(runner);
    this.#readOnly.delete(runner);
    return remembered;
  }
}

function isReplica(runner: QueryRunner): boolean {
  return runner.dataSource.driver.isReplicated && runner.getReplicationMode() === 'slave';
}
