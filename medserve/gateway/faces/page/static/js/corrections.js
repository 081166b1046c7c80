// Classes that a person chose, with every step to be taken back.

import { request } from "./server.js";

export class Corrections {
  /** `changed(files)` hears what the server made of each step, `moved()` that there was one. */
  constructor(path, changed, moved) {
    this.path = path;
    this.changed = changed;
    this.moved = moved;
    ({ done: this.done, undone: this.undone } = kept(path)); // they survive a reload
    this.last = Promise.resolve();
  }

  /** Set classes, as one step: [{number, before, after}]; null takes the model's own. */
  set(changes) {
    this.done.push(changes);
    this.undone.length = 0;
    return this.#send(changes, "after");
  }

  /** Take the last step back; the numbers of its files, null where there is none. */
  undo() {
    return this.#move(this.done, this.undone, "before");
  }

  redo() {
    return this.#move(this.undone, this.done, "after");
  }

  #move(from, to, side) {
    const step = from.pop();
    if (!step) return null;
    to.push(step);
    return this.#send(step, side).then(() => step.map(({ number }) => number));
  }

  #send(changes, side) {
    try {
      sessionStorage.setItem(this.path, JSON.stringify({ done: this.done, undone: this.undone }));
    } catch {
      // the browser keeps nothing: the steps last as long as this page
    }
    this.moved();
    const classes = Object.fromEntries(changes.map((each) => [each.number, each[side]]));
    const turn = this.last.then(async () => {
      const response = await request(this.path, { method: "POST", json: { classes } });
      this.changed((await response.json()).files);
    });
    this.last = turn.catch(() => {}); // the next step does not depend on this one
    return turn;
  }
}

function kept(path) {
  try {
    return JSON.parse(sessionStorage.getItem(path)) ?? { done: [], undone: [] };
  } catch {
    return { done: [], undone: [] };
  }
}
