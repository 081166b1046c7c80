// Many files to a job: a few packs at a time, tried again where that helps.

import { reachable, untilReachable } from "./connection.js";
import { request, ServerError, sendPack } from "./server.js";

const FILES_A_PACK = 32;
const FIRST_PACK = 8; // small, so that the first answers come at once
const BYTES_A_PACK = 4 * 2 ** 20;
const PACKS_AT_A_TIME = 3;
const ATTEMPTS = 6;

/**
 * Sends rows ({number, name, file}) to a job, or asks again for those that are `stored` there.
 *
 * `hear` gets {sending: rows, part}, {answered: files} and {failed: rows, error}.
 */
export class Uploads {
  constructor(path, limits, hear) {
    this.path = path;
    this.limits = limits;
    this.hear = hear;
    this.waiting = [];
    this.running = 0;
    this.first = true;
    this.stopping = new AbortController();
  }

  /** Take more files. */
  add(rows) {
    for (const row of rows) {
      if (!row.stored && row.file.size > this.limits.bytes) {
        this.hear({ failed: [row], error: new ServerError(413, "PAYLOAD_TOO_LARGE", "") });
      } else {
        this.waiting.push(row);
      }
    }
    while (this.running < PACKS_AT_A_TIME && this.waiting.length) this.#run();
  }

  /** Send nothing more; what is under way is given up. */
  stop() {
    const dropped = this.waiting.splice(0);
    if (dropped.length) this.hear({ failed: dropped, error: new DOMException("stopped", "AbortError") });
    this.stopping.abort();
    this.stopping = new AbortController();
  }

  async #run() {
    this.running += 1;
    try {
      while (this.waiting.length) await this.#send(this.#pack());
    } finally {
      this.running -= 1;
    }
  }

  #pack() {
    const most = Math.min(this.first ? FIRST_PACK : FILES_A_PACK, this.limits.files);
    this.first = false;
    let size = 0;
    let taken = 0;
    const { stored } = this.waiting[0];
    for (const row of this.waiting.slice(0, most)) {
      size += row.size;
      if (taken && (row.stored !== stored || size > BYTES_A_PACK)) break;
      taken += 1;
    }
    return this.waiting.splice(0, taken);
  }

  async #send(pack) {
    try {
      const { files } = await this.#patiently(pack);
      this.hear({ answered: files });
    } catch (error) {
      const ofThePack = error.status === 400 || error.status === 413 || error.status === 0;
      if (ofThePack && pack.length > 1 && !this.stopping.signal.aborted) {
        for (const row of pack) await this.#send([row]); // one of them is to blame
      } else {
        this.hear({ failed: pack, error });
      }
    }
  }

  async #once(pack, signal) {
    if (pack[0].stored) {
      const json = { numbers: pack.map(({ number }) => number) };
      return (await request(`${this.path}/answers`, { method: "POST", json, signal })).json();
    }
    const progress = (part) => this.hear({ sending: pack, part });
    return sendPack(`${this.path}/files`, pack, { progress, signal });
  }

  async #patiently(pack) {
    const { signal } = this.stopping;
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await this.#once(pack, signal);
      } catch (error) {
        if (error.status === 0 && !(await reachable())) {
          await untilReachable(signal);
          if (signal.aborted) throw new DOMException("stopped", "AbortError");
          attempt = 0;
          continue;
        }
        if (!error.passing || attempt === (error.status === 0 ? 2 : ATTEMPTS)) throw error;
        await new Promise((resolve) => setTimeout(resolve, 250 * 2 ** attempt * (0.75 + Math.random() / 2)));
        if (signal.aborted) throw new DOMException("stopped", "AbortError");
      }
    }
  }
}
