// The files of a classification: what is known of each, and in which folder it will lie.

export const REVIEW = "_review";
export const ERRORS = "_errors";

/** The folder of a file, as the server will put it into the zip; null while there is no answer. */
export function folderOf(row) {
  if (row.correction) return row.correction;
  if (row.status === "ok") return row.label;
  if (row.status === "review" || row.status === "unlike") return REVIEW;
  return row.status === "error" ? ERRORS : null;
}

/** The class that counts: a person's, else the model's. */
export const classOf = (row) => row.correction ?? row.label ?? null;

/** Whether the service has not said yet what it makes of a file. */
export const isOpen = ({ status }) => ["waiting", "failed", "missing"].includes(status);

const ORDER = ["ok", "review", "unlike", "error", "failed", "missing", "waiting"];

/** Rises with certainty: unlike the training data first, then the unsure, then by probability. */
function doubtOf(row) {
  if (row.probability === undefined) return null;
  const rank = row.correction ? 3 : { unlike: 0, review: 1 }[row.status] ?? 2;
  return rank + row.probability / 2;
}

/** What the table can be ordered by; each gives a number or a text, null comes last. */
const KEYS = {
  name: (row) => row.name,
  id: (row, labels) => (classOf(row) === null ? null : labels.indexOf(classOf(row))),
  class: (row) => classOf(row),
  probability: (row) => row.probability ?? null,
  doubt: doubtOf,
  status: (row) => ORDER.indexOf(row.status),
};

/** Rows of a folder (null: all) whose name or class has the words, in the wished order. */
export function selected(rows, { folder, words, sort, descending }, labels, language) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  const found = rows.filter((row) => {
    if (folder !== null && folderOf(row) !== folder) return false;
    const text = `${row.name} ${classOf(row) ?? ""}`.toLowerCase();
    return wanted.every((word) => text.includes(word));
  });
  if (!sort) return found;
  const compare = new Intl.Collator(language, { numeric: true }).compare;
  const keyed = found.map((row) => ({ row, key: KEYS[sort](row, labels) }));
  keyed.sort((a, b) => {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
    const order = typeof a.key === "string" ? compare(a.key, b.key) : a.key - b.key;
    return (descending ? -order : order) || a.row.number - b.row.number;
  });
  return keyed.map(({ row }) => row);
}

/** How many files each folder has; classes in the model's order, then the two others. */
export function tally(rows, labels) {
  const counts = new Map([...labels, REVIEW, ERRORS].map((folder) => [folder, 0]));
  for (const row of rows) {
    const folder = folderOf(row);
    if (folder !== null) counts.set(folder, (counts.get(folder) ?? 0) + 1);
  }
  return counts;
}
