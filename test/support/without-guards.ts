// Takes keys away as no verb ever does: what keeps them from getting lost is set aside for the moment.
type Query = (text: string) => Promise<unknown>;

const guards = [
  ['data_key', 'data_key_guard'],
  ['data_key', 'data_key_stays'],
  ['data_key_wrap', 'data_key_wrap_guard'],
] as const;

export async function withoutGuards(query: Query, work: () => Promise<unknown>): Promise<void> {
  for (const [table, guard] of guards) await query(`ALTER TABLE keyturn.${table} DISABLE TRIGGER ${guard}`);
  await work();
  for (const [table, guard] of guards) await query(`ALTER TABLE keyturn.${table} ENABLE ALWAYS TRIGGER ${guard}`);
}

/** As after an activation that died before it made the next standby. */
export function loseKey(query: Query, id: number): Promise<void> {
  return withoutGuards(query, async () => {
    await query(`DELETE FROM keyturn.data_key_wrap WHERE data_key_id = ${id}`);
    await query(`DELETE FROM keyturn.data_key WHERE id = ${id}`);
  });
}
