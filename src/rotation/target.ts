// A registered table as the engine sees it: its key, its encrypted columns, its optional tenant column. Ids are stable;
// names are today's.

export type KeyTag = 'int' | 'uuid' | 'text';

export interface KeyColumn {
  readonly name: string;
  /** SQL type to cast parameters to, e.g. `bigint`. */
  readonly type: string;
  readonly tag: KeyTag;
}

export interface ScopeColumn {
  readonly name: string;
  readonly type: string;
}

export interface TargetColumn {
  readonly id: string;
  /** `email`, or `profile.ssn` for a jsonb path. */
  readonly name: string;
  readonly columnName: string;
  readonly path: readonly string[] | undefined;
  readonly sqlType: 'text' | 'varchar' | 'bytea' | 'jsonb';
  /** Characters a varchar(n) takes. */
  readonly maxLength: number | undefined;
  readonly format: string;
  readonly bind: 'row' | 'column';
  /** Registered over values of another form, and not on its way between two forms yet. */
  readonly awaitsAdoption?: boolean;
  /** Taken out again: no part of its target any more, but entities may still name it. */
  readonly isLeft?: boolean;
}

export interface Target {
  readonly id: string;
  readonly keyringId: string;
  readonly keyringName: string;
  readonly tableOid: number;
  readonly schema: string;
  readonly table: string;
  readonly key: readonly KeyColumn[];
  readonly scope: ScopeColumn | undefined;
  readonly columns: readonly TargetColumn[];
}

/** One primary key: each column's value as PostgreSQL prints it (`pk::text`). */
export type RowKey = readonly string[];

export function targetTitle(target: { readonly schema: string; readonly table: string }): string {
  return `${target.schema}.${target.table}`;
}

/** SQL types a primary key column may have, and the tag each carries in the envelope's associated data. */
export const keyTags: Readonly<Record<string, KeyTag>> = {
  smallint: 'int',
  integer: 'int',
  bigint: 'int',
  uuid: 'uuid',
  text: 'text',
  'character varying': 'text',
};
