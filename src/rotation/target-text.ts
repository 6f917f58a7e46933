// Tables and columns as the text of a keyturn.yaml, for those who have none yet.

export interface ProposedColumn {
  /** Of the column in its table. */
  readonly name: string;
  /** Inside a jsonb column. */
  readonly path: readonly string[] | undefined;
  readonly bind: 'row' | 'column' | undefined;
  /** Said behind the column. */
  readonly note: string | undefined;
  /** Not to be registered as it is: the line is commented out. */
  readonly isAside: boolean;
}

export interface ProposedTarget {
  readonly table: string;
  readonly scope: string | undefined;
  readonly note: string | undefined;
  readonly columns: readonly ProposedColumn[];
}

/** The whole file, for one keyring whose root key is in the environment. */
export function configText(keyring: string, targets: readonly ProposedTarget[]): string {
  const lines = [
    'keyrings:',
    `  ${nameText(keyring)}: { root: env:KEYTURN_ROOT_KEY }`,
    targets.length === 0 ? 'targets: []' : 'targets:',
  ];
  for (const target of targets) lines.push(...targetLines(keyring, target));
  return `${lines.join('\n')}\n`;
}

function targetLines(keyring: string, target: ProposedTarget): readonly string[] {
  // A target needs a column; one that has only notes is a note itself.
  const lead = target.columns.every(({ isAside }) => isAside) ? '# ' : '';
  const lines = [
    `${lead}  - table: ${nameText(target.table)}${noteText(target.note)}`,
    `${lead}    keyring: ${nameText(keyring)}`,
  ];
  if (target.scope !== undefined) lines.push(`${lead}    scope: ${nameText(target.scope)}`);
  lines.push(`${lead}    columns:`);
  for (const name of new Set(target.columns.map((column) => column.name)))
    lines.push(
      ...columnLines(
        lead,
        name,
        target.columns.filter((column) => column.name === name),
      ),
    );
  return lines;
}

function columnLines(lead: string, name: string, columns: readonly ProposedColumn[]): readonly string[] {
  const isDocument = columns.some(({ path }) => path !== undefined);
  if (!isDocument)
    return columns.map((column) => {
      const settings = column.bind === 'column' ? '{ bind: column }' : '{}';
      return `${lead || (column.isAside ? '# ' : '')}      ${nameText(name)}: ${settings}${noteText(column.note)}`;
    });
  const aside = lead || (columns.every(({ isAside }) => isAside) ? '# ' : '');
  return [
    `${aside}      ${nameText(name)}:`,
    `${aside}        paths:`,
    ...columns.map(
      ({ path = [], note, isAside }) =>
        `${aside || (isAside ? '# ' : '')}          ${nameText(path.join('_'))}: [${path.map(nameText).join(', ')}]${noteText(note)}`,
    ),
  ];
}

function noteText(note: string | undefined): string {
  return note === undefined ? '' : `  # ${note}`;
}

/** Plain where YAML reads it as the same text, quoted otherwise. */
function nameText(name: string): string {
  const isPlain = /^[A-Za-z_][\w.-]*$/.test(name) && !/^(?:true|false|yes|no|on|off|null|y|n)$/i.test(name);
  return isPlain ? name : JSON.stringify(name);
}
