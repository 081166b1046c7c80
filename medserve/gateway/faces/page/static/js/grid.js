// The files as pictures, of which many are chosen at once: by click, with Shift, or with the keyboard alone.

import { $, h } from "./dom.js";
import { classOf, isOpen, sharesOf } from "./files.js";
import { count, percent, t } from "./page.js";
import { dash, picture } from "./pictures.js";
import { WindowedRows } from "./window.js";

const AIR = 8; // pixels between a picture and the bars at the edges of the window

/** A listbox: the focus stays on it, and the active picture is the one that it names. */
export class Grid {
  /** `look(row)` enlarges a file, `set(rows, label)` gives files a class; `job()` is the job's id. */
  constructor({ look, set, said, job }) {
    Object.assign(this, { look, set, said, job });
    this.box = $("grid");
    this.shown = [];
    this.picked = new Set();
    this.active = null;
    this.anchor = null;
    this.labels = [];
    this.window = new WindowedRows(this.box, {
      make: (row) => this.#make(row),
      place: (cell, index, all) => this.#place(cell, index, all),
      across: () => this.#across(),
    });
    this.box.addEventListener("click", (event) => this.#click(event));
    this.box.addEventListener("dblclick", (event) => this.#at(event) && this.look(this.#at(event)));
    this.box.addEventListener("keydown", (event) => this.#key(event) && event.preventDefault());
    $("pick-all").addEventListener("click", () => this.#pick(this.shown.filter((row) => !isOpen(row))));
    $("pick-none").addEventListener("click", () => this.#pick([]));
    $("enlarge").addEventListener("click", () => this.active && this.look(this.active));
  }

  /** Offer a button for each class. */
  offer(labels) {
    this.labels = labels;
    $("pick-classes").replaceChildren(...labels.map((label, place) =>
      h("button", { type: "button", onclick: () => this.#choose(label) }, place < 9 ? h("kbd", { "aria-hidden": "true" }, String(place + 1)) : null, label)));
  }

  /** Show these rows; what is out of sight is never changed, so it is chosen no longer. */
  show(rows) {
    const was = this.shown.indexOf(this.active);
    this.shown = rows;
    const there = new Set(rows);
    for (const row of this.picked) if (!there.has(row)) this.picked.delete(row);
    const corrected = this.active && classOf(this.active) !== this.label;
    if (corrected || !there.has(this.active)) this.active = rows[Math.max(0, Math.min(was, rows.length - 1))] ?? null; // the next one, where it moved
    this.window.show(rows);
    this.#tell();
  }

  /** Take the focus, at a row where it is shown. */
  focus(row) {
    this.box.focus({ preventScroll: true });
    this.#go(this.shown.includes(row) ? row : this.active);
  }

  renew(row) {
    this.window.renew(row);
  }

  #across() {
    return Math.max(1, getComputedStyle(this.box).gridTemplateColumns.split(" ").length);
  }

  #at(event) {
    const cell = event.target.closest(".cell");
    return cell ? this.shown.find(({ number }) => cell.id === `cell-${number}`) : null;
  }

  #click(event) {
    const row = this.#at(event);
    if (!row) return;
    if (event.shiftKey) this.#extend(row);
    else {
      this.anchor = row;
      this.#pick(this.picked.has(row) ? [...this.picked].filter((each) => each !== row) : [...this.picked, row], row);
    }
  }

  /** Choose everything from the anchor to a row, and what was chosen before. */
  #extend(row) {
    const from = this.shown.indexOf(this.anchor ?? this.active ?? row);
    const to = this.shown.indexOf(row);
    this.anchor ??= this.active;
    this.#pick([...this.picked, ...this.shown.slice(Math.min(from, to), Math.max(from, to) + 1)], row);
  }

  #pick(rows, active = this.active) {
    this.picked = new Set(rows.filter((row) => !isOpen(row)));
    this.#go(active);
  }

  #go(row) {
    this.active = row;
    const bar = document.querySelector(".sheet .toolbar").getBoundingClientRect().bottom;
    if (row) this.window.reveal(row, { above: Math.max(0, bar) + AIR, below: $("picks").offsetHeight + AIR });
    this.window.draw();
    this.#tell();
  }

  /** A class for what is chosen, else for the active picture. */
  #choose(label) {
    const rows = this.picked.size ? [...this.picked] : [this.active].filter((row) => row && !isOpen(row));
    if (!rows.length) return;
    this.picked.clear();
    this.set(rows, label);
  }

  /** Do what a key asks for; false where it is none of ours. */
  #key(event) {
    const { key, ctrlKey, metaKey, shiftKey } = event;
    const at = this.shown.indexOf(this.active);
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.#across(), ArrowDown: this.#across(), Home: -at, End: this.shown.length - 1 - at }[key];
    if (step !== undefined) {
      const row = this.shown[at + step];
      if (row && shiftKey) this.#extend(row);
      else if (row) {
        this.anchor = row;
        this.#go(row);
      }
      return true;
    }
    if (ctrlKey || metaKey) return key.toLowerCase() === "a" && (this.#pick(this.shown), true);
    if (key === " " && this.active) {
      const picked = new Set(this.picked);
      if (!picked.delete(this.active)) picked.add(this.active);
      this.anchor = this.active;
      this.#pick([...picked]);
    } else if (key === "Enter" && this.active) this.look(this.active);
    else if (key === "Escape" && this.picked.size) this.#pick([]);
    else if (/^[1-9]$/.test(key) && this.labels[key - 1]) this.#choose(this.labels[key - 1]);
    else return false;
    return true;
  }

  #tell() {
    this.label = this.active && classOf(this.active);
    if (this.active) this.box.setAttribute("aria-activedescendant", `cell-${this.active.number}`);
    else this.box.removeAttribute("aria-activedescendant");
    const text = t("classify.picked", { n: count(this.picked.size) });
    if ($("picked").textContent !== text) $("picked").textContent = text;
    $("pick-none").disabled = !this.picked.size;
    $("enlarge").disabled = !this.active;
    for (const button of $("pick-classes").children) button.disabled = !this.picked.size && (!this.active || isOpen(this.active));
  }

  #place(cell, index, all) {
    const row = this.shown[index];
    cell.setAttribute("aria-posinset", index + 1);
    cell.setAttribute("aria-setsize", all);
    cell.setAttribute("aria-selected", String(this.picked.has(row)));
    cell.classList.toggle("active", row === this.active);
  }

  #make(row) {
    const label = classOf(row);
    const { text, kind } = this.said(row);
    return h("div", { className: "cell", role: "option", id: `cell-${row.number}`, title: row.name },
      h("span", { className: "cell-picture" }, picture(row, this.job()) ?? dash()),
      h("span", { className: "cell-class" }, label ?? dash()),
      h("span", { className: `status ${kind}` }, kind === "ok" ? sharesOf(row).map(percent).join("; ") || text : text),
      h("span", { className: "cell-name" }, row.name.slice(row.name.lastIndexOf("/") + 1)));
  }
}
