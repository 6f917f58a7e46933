// Plain text tables: columns aligned by spaces, numbers to the right, nothing that a terminal has to draw.

/** Each row a line, indented by two. Columns whose cells below the head are all numbers are aligned to the right. */
export function tableLines(head: readonly string[], rows: readonly (readonly string[])[]): readonly string[] {
  const widths = head.map((title, at) => Math.max(title.length, ...rows.map((row) => (row[at] ?? '').length)));
  const isNumeric = head.map((_, at) => rows.length > 0 && rows.every((row) => /^[~\d.,]*$/.test(row[at] ?? '')));
  const line = (cells: readonly string[]): string =>
    `  ${cells.map((cell, at) => (isNumeric[at] === true ? cell.padStart(widths[at] ?? 0) : cell.padEnd(widths[at] ?? 0))).join('  ')}`.trimEnd();
  return [line(head), ...rows.map(line)];
}

/** `12,345` */
export function formatCount(count: number): string {
  return count.toLocaleString('en-US');
}

/** `1 cell`, `12,345 cells` */
export function countOf(count: number, noun: string): string {
  return `${formatCount(count)} ${noun}${count === 1 ? '' : 's'}`;
}

/** `2026-11-22 19:14:03Z` */
export function formatTime(iso: string): string {
  return `${iso.slice(0, 10)} ${iso.slice(11, 19)}Z`;
}
