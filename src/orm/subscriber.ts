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
import type { RowKey, Target } from '../rotation/target.js';
import { notComparable } from './ciphertext-conditions.js';
import type { Installation } from './installation.js';
import { openEntity } from './open-entity.js';
import { findMarker } from './transformer.js';

/** Stale rows that one transaction may remember. */
const maxRemembered = 1_000;
const opensReadOnly =
  /^\s*(?:BEGIN|START\s+TRANSACTION|SET\s+(?:LOCAL\s+)?TRANSACTION|SET\s+SESSION\s+CHARACTERISTICS)\b.*\bREAD\s+ONLY\b/is;

/** Titles of the encrypted properties, by their transformer. */
export type TitlesByTransformer = ReadonlyMap<number, readonly { readonly entity: string; readonly title: string }[]>;

interface StaleRow {
  readonly target: Target;
  readonly key: RowKey;
}

export class KeyturnSubscriber implements EntitySubscriberInterface {
  readonly #installation: Installation;
  readonly #titles: TitlesByTransformer;
  readonly #isReadOnly: boolean;
  readonly #readOnly = new WeakSet<QueryRunner>();
  readonly #remembered = new WeakMap<QueryRunner, Map<string, StaleRow>>();

  constructor(installation: Installation, titles: TitlesByTransformer, isReadOnly: boolean) {
    this.#installation = installation;
    this.#titles = titles;
    this.#isReadOnly = isReadOnly;
  }

  afterLoad(loaded: unknown, event?: LoadEvent<object>): Promise<void> | undefined {
    if (event === undefined || typeof loaded !== 'object' || loaded === null) return undefined;
    const metadata = event.metadata.findInheritanceMetadata(loaded);
    const entity = this.#installation.readEntityOf(metadata);
    if (entity === undefined) return undefined;
    return openEntity(this.#installation.keyrings, entity, loaded, (key) => {
      // Nothing is left to move where only columns are mapped that were left.
      const target = this.#installation.targets.find(({ id }) => id === entity.target.id);
      if (target !== undefined) this.#offer(event.queryRunner, { target, key });
    });
  }

  beforeQuery(event: BeforeQueryEvent): void {
    const marker = event.parameters === undefined ? undefined : findMarker(event.parameters as unknown[]);
    if (marker !== undefined) throw notComparable(this.#titleIn(event.query, marker));
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

  /** An embedded class used twice, or a parent's property, is one transformer for several properties. */
  #titleIn(query: string, transformer: number): string {
    const candidates = this.#titles.get(transformer) ?? [];
    const queried = candidates.filter(({ entity }) => query.includes(`"${entity}"`));
    return (queried.length === 0 ? candidates : queried).map(({ title }) => title).join(' or ');
  }

  #offer(runner: QueryRunner, row: StaleRow): void {
    if (this.#isReadOnly || this.#readOnly.has(runner) || isReplica(runner)) return;
    if (!runner.isTransactionActive) {
      this.#installation.upgrades.offer(row.target, row.key);
      return;
    }
    const remembered = this.#remembered.get(runner) ?? new Map<string, StaleRow>();
    this.#remembered.set(runner, remembered);
    if (remembered.size < maxRemembered) remembered.set(`${row.target.id} ${JSON.stringify(row.key)}`, row);
  }

  #forget(runner: QueryRunner): readonly StaleRow[] {
    const remembered = this.#remembered.get(runner)?.values() ?? [];
    this.#remembered.delete(runner);
    this.#readOnly.delete(runner);
    return [...remembered];
  }
}

function isReplica(runner: QueryRunner): boolean {
  return runner.dataSource.driver.isReplicated && runner.getReplicationMode() === 'slave';
}
