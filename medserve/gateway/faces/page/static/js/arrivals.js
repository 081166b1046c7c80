// Files that a visitor gives: which are new, which are wanted still, which are there already.

/** A browser names the same file of a disk by its path, size and date; nothing else is at hand. */
const identity = (name, size, modified) => `${name}\0${size}\0${modified}`;

export class Arrivals {
  /**
   * Sort [{name, file}] by the rows that a job has.
   *
   * Gives {fresh: new rows, again: rows that can be sent or asked for now, known: how many are done}.
   */
  sort(found, rows) {
    const there = new Map(rows.map((row) => [identity(row.name, row.size, row.modified), row]));
    let number = rows.reduce((highest, row) => Math.max(highest, row.number), -1);
    const sorted = { fresh: [], again: [], known: 0 };
    for (const { name, file } of found) {
      const modified = Math.floor(file.lastModified / 1000);
      const key = identity(name, file.size, modified);
      const row = there.get(key);
      if (!row) {
        number += 1;
        const fresh = { number, name, file, size: file.size, modified, status: "waiting", correction: null };
        sorted.fresh.push(fresh);
        there.set(key, fresh);
        continue;
      }
      const wanted = row.status === "missing" || row.status === "failed" || row.stopped;
      row.file = file;
      if (wanted) sorted.again.push(row);
      else sorted.known += 1;
    }
    return sorted;
  }
}
