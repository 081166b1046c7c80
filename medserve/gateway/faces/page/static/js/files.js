// The files of a classification: what is known of each, and in which folder it will lie.

export const REVIEW = "_review";
export const ERRORS = "_errors";
export const NONE = "_none"; // of labels that are independent: none is present
export const SEVERAL = "_several";

/** Independent labels as one text, as the server writes and reads them. */
const asFinding = (labels) => labels.join("; ") || "none";
const labelsIn = (text) => (text === "none" ? [] : text.split("; "));

/** Numbers with their units as one text. */
const asNumbers = (values) => values.map(({ name, shown }) => `${name} ${shown}`).join("; ");

/** What the model says: its class, or as one text the independent labels that are present, or numbers. */
export function ownClass(row) {
  if (row.values) return asNumbers(row.values);
  return row.present ? asFinding(row.present) : row.label ?? null;
}

/** The probability of the class, or of each independent label that is present; none without an answer. */
export function sharesOf(row) {
  if (row.present) return row.present.map((label) => row.probabilities[row.labels.indexOf(label)]);
  return row.probability === undefined ? [] : [row.probability];
}

/** The least of them, by which a file is doubtful; null where there is none. */
export const leastOf = (row) => (sharesOf(row).length ? Math.min(...sharesOf(row)) : null);

/** The labels that count, of which there is one where they exclude each other. */
export function labelsOf(row) {
  const found = classOf(row);
  if (found === null || row.values) return [];
  return row.independent ? labelsIn(found) : [found];
}

/** The labels of a file as one text, with one of them put in or left out. */
export function withLabel(row, label, isThere) {
  const others = labelsOf(row).filter((each) => each !== label);
  const found = isThere ? [...others, label] : others;
  return asFinding(row.labels.filter((each) => found.includes(each)));
}

/** The folder of a file, as the server will put it into the zip; null while there is no answer. */
export function folderOf(row) {
  if (row.values && row.status === "ok") return null; // numbers are no folder
  if (row.correction || row.status === "ok") {
    const labels = labelsOf(row);
    return labels.length === 1 ? labels[0] : labels.length ? SEVERAL : NONE;
  }
  if (row.status === "review" || row.status === "unlike") return REVIEW;
  return row.status === "error" ? ERRORS : null;
}

/** The class that counts: a person's, else the model's. */
export const classOf = (row) => row.correction ?? ownClass(row);

/** Whether the service has not said yet what it makes of a file. */
export const isOpen = ({ status }) => ["waiting", "failed", "missing"].includes(status);

const ORDER = ["ok", "review", "unlike", "error", "failed", "missing", "waiting"];

/** Rises with certainty: unlike the training data first, then the unsure, then by the least probability. */
function doubtOf(row) {
  if (!row.probabilities && !row.values) return null;
  const rank = row.correction ? 3 : { unlike: 0, review: 1 }[row.status] ?? 2;
  return rank + (leastOf(row) ?? 1) / 2;
}

/** What the table can be ordered by; each gives a number or a text, null comes last. */
const KEYS = {
  name: (row) => row.name,
  id: (row, labels) => (labelsOf(row).length ? labels.indexOf(labelsOf(row)[0]) : null),
  class: (row) => classOf(row),
  probability: leastOf,
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

/** How many files each folder has; classes in the model's order, then the others. */
export function tally(rows, { labels, independent } = { labels: [] }) {
  const others = [...(independent ? [NONE, SEVERAL] : []), REVIEW, ERRORS];
  const counts = new Map([...labels, ...others].map((folder) => [folder, 0]));
  for (const row of rows) {
    const folder = folderOf(row);
    if (folder !== null) counts.set(folder, (counts.get(folder) ?? 0) + 1);
  }
  return counts;
}
