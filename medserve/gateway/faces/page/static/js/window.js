// A table of any length of which only the rows in sight exist; all rows are equally high.

import { h, oncePerFrame } from "./dom.js";

const BEYOND = 12; // rows above and below the sight, so that Tab and scrolling find them

export class WindowedRows {
  /** `make(item)` builds a row; `drop(item, row)` is told when one goes. */
  constructor(table, body, columns, { make, drop }) {
    this.table = table;
    this.body = body;
    this.make = make;
    this.drop = drop;
    this.items = [];
    this.rows = new Map();
    this.above = space(columns);
    this.below = space(columns);
    body.append(this.above, this.below);
    this.draw = oncePerFrame(() => this.#draw());
    addEventListener("scroll", this.draw, { passive: true });
    addEventListener("resize", this.draw, { passive: true });
  }

  /** Show these items, in this order. */
  show(items) {
    this.items = items;
    this.table.setAttribute("aria-rowcount", items.length + 1); // the heading counts
    this.draw();
  }

  /** Build the row of an item anew, if it is in sight. */
  renew(item) {
    const old = this.rows.get(item);
    if (!old) return;
    const focused = document.activeElement?.closest("tr") === old ? document.activeElement.dataset.focus : null;
    this.drop(item, old);
    const row = this.make(item);
    row.setAttribute("aria-rowindex", old.getAttribute("aria-rowindex"));
    old.replaceWith(row);
    this.rows.set(item, row);
    if (focused) row.querySelector(`[data-focus="${focused}"]`)?.focus({ preventScroll: true });
  }

  #draw() {
    const height = this.height ?? 50;
    const top = this.body.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(-top / height) - BEYOND);
    const last = Math.min(this.items.length, Math.ceil((innerHeight - top) / height) + BEYOND);
    const wanted = this.items.slice(first, Math.max(first, last));
    const keep = new Set(wanted);
    for (const [item, row] of this.rows) {
      if (keep.has(item)) continue;
      this.drop(item, row);
      row.remove();
      this.rows.delete(item);
    }
    let before = this.above;
    wanted.forEach((item, place) => {
      let row = this.rows.get(item);
      if (!row) {
        row = this.make(item);
        this.rows.set(item, row);
      }
      row.setAttribute("aria-rowindex", first + place + 2);
      if (before.nextSibling !== row) before.after(row);
      before = row;
    });
    stretch(this.above, first * height);
    stretch(this.below, (this.items.length - first - wanted.length) * height);
    const real = wanted.length ? this.rows.get(wanted[0]).getBoundingClientRect().height : 0;
    if (real && Math.abs(real - height) > 0.5) {
      this.height = real; // as the style sheet has it
      this.draw();
    }
  }
}

function space(columns) {
  return h("tr", { className: "space", "aria-hidden": "true" }, h("td", { colspan: String(columns) }));
}

function stretch(row, height) {
  row.hidden = height === 0;
  row.firstChild.style.height = `${height}px`;
}
