// A list of any length of which only the lines in sight exist; all lines are equally high.

import { h, oncePerFrame } from "./dom.js";

const BEYOND = 12; // lines above and below the sight, so that Tab and scrolling find them

export class WindowedRows {
  /**
   * `make(item)` builds an element and `place(element, index, count)` says where it stands among all;
   * `space()` is an element for what is out of sight, and `across()` how many items a line has.
   */
  constructor(body, { make, place, space = () => h("div", { className: "space", "aria-hidden": "true" }), across = () => 1 }) {
    Object.assign(this, { body, make, place, across });
    this.items = [];
    this.rows = new Map();
    this.held = null; // which row had the focus before the items changed, and where it stood
    this.above = space();
    this.below = space();
    body.append(this.above, this.below);
    this.draw = oncePerFrame(() => {
      this.#draw();
      this.#hold();
    });
    addEventListener("scroll", this.draw, { passive: true });
    addEventListener("resize", this.draw, { passive: true });
  }

  /** Show these items, in this order. */
  show(items) {
    this.held ??= this.#focused();
    this.items = items;
    this.draw();
  }

  /** Build the element of an item anew, if it is in sight. */
  renew(item) {
    const old = this.rows.get(item);
    if (!old) return;
    const focused = old.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
    const row = this.make(item);
    this.place(row, this.items.indexOf(item), this.items.length);
    old.replaceWith(row);
    this.rows.set(item, row);
    if (focused) row.querySelector(`[data-focus="${focused}"]`)?.focus({ preventScroll: true });
  }

  /** Put the focus on a part of an item's row, in sight; false where the item is not shown. */
  focus(item, part, margin) {
    if (!this.items.includes(item)) return false;
    this.reveal(item, margin);
    this.#part(item, part)?.focus({ preventScroll: true });
    return true;
  }

  #part(item, part) {
    return this.rows.get(item)?.querySelector(`[data-focus="${part}"]`);
  }

  #focused() {
    const { activeElement } = document;
    const [item] = [...this.rows].find(([, row]) => row.contains(activeElement)) ?? [];
    return item ? { item, part: activeElement.dataset.focus, index: this.items.indexOf(item) } : null;
  }

  /** Where its row moved or left, give the focus back: to the same item, else to the one in its place. */
  #hold() {
    const { item, part, index } = this.held ?? {};
    this.held = null;
    if (!item || document.activeElement !== document.body) return;
    const next = this.items[Math.min(index, this.items.length - 1)];
    (this.#part(item, part) ?? this.#part(next, "look"))?.focus();
  }

  /** Scroll until the line of an item is in sight, `margin` pixels from what covers the edges. */
  reveal(item, margin) {
    this.#draw(); // for lines of the present height
    const height = this.height ?? 50;
    const top = this.body.getBoundingClientRect().top + Math.floor(this.items.indexOf(item) / this.across()) * height;
    if (top < margin.above) scrollBy(0, top - margin.above);
    else if (top + height > innerHeight - margin.below) scrollBy(0, top + height - innerHeight + margin.below);
    this.#draw();
  }

  #draw() {
    const height = this.height ?? 50;
    const across = this.across();
    const top = this.body.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(-top / height) - BEYOND) * across;
    const last = Math.min(this.items.length, (Math.ceil((innerHeight - top) / height) + BEYOND) * across);
    const wanted = this.items.slice(first, Math.max(first, last));
    const keep = new Set(wanted);
    for (const [item, row] of this.rows) {
      if (keep.has(item)) continue;
      row.remove();
      this.rows.delete(item);
    }
    let before = this.above;
    wanted.forEach((item, index) => {
      let row = this.rows.get(item);
      if (!row) {
        row = this.make(item);
        this.rows.set(item, row);
      }
      this.place(row, first + index, this.items.length);
      if (before.nextSibling !== row) before.after(row);
      before = row;
    });
    const lines = (items) => Math.ceil(items / across);
    stretch(this.above, lines(first) * height);
    stretch(this.below, (lines(this.items.length) - lines(first + wanted.length)) * height);
    const real = wanted.length ? this.rows.get(wanted[0]).getBoundingClientRect().height : 0;
    if (real && Math.abs(real - height) > 0.5) {
      this.height = real; // as the style sheet has it
      this.#draw();
    }
  }
}

function stretch(space, height) {
  space.hidden = height === 0;
  (space.firstChild ?? space).style.height = `${height}px`;
}
