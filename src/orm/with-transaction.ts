// A transaction around several statements of one query builder: the caller's where it has one, else one of its own.
import type { DataSource, QueryRunner } from 'typeorm';

export async function withTransaction<T>(
  dataSource: DataSource,
  given: QueryRunner | undefined,
  work: (runner: QueryRunner) => Promise<T>,
): Promise<T> {
  const runner = given ?? dataSource.createQueryRunner('master');
  const isOurs = !runner.isTransactionActive;
  try {
    if (isOurs) await runner.startTransaction();
    const result = await work(runner);
    if (isOurs) await runner.commitTransaction();
    return result;
  } catch (error) {
    if (isOurs && runner.isTransactionActive) await runner.rollbackTransaction().catch(() => undefined);
    throw error;
  } finally {
    if (given === undefined) await runner.release();
  }
}
