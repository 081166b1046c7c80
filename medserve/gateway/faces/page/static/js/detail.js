// A closer look at one file: its picture, all probabilities, and why it failed.

import { $, h } from "./dom.js";
import { count, decimal, explain, explainFile, bytes, percent, t } from "./page.js";
import { classOf, labelsOf, ownClass, sharesOf } from "./files.js";
import { picture } from "./pictures.js";
import { request } from "./server.js";

export class Detail {
  /**
   * `set(row, label)` takes the class that a person chose with its number on the keyboard, and
   * `back(row)` the focus after the last look.
   */
  constructor(labels, set, back) {
    this.labels = labels;
    this.set = set;
    this.dialog = $("detail");
    $("previous").addEventListener("click", () => this.#step(-1));
    $("next").addEventListener("click", () => this.#step(1));
    $("explain").addEventListener("click", () => this.#explain(this.row));
    this.dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") this.#step(-1);
      if (event.key === "ArrowRight") this.#step(1);
      const label = /^[1-9]$/.test(event.key) && !event.ctrlKey && this.labels[event.key - 1];
      if (label && ownClass(this.row)) set(this.row, label);
    });
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    this.dialog.addEventListener("close", () => back(this.row));
  }

  /** Look at a row; `order` are the rows that the arrows turn to. */
  show(row, job, order = this.order) {
    this.row = row;
    this.job = job;
    this.order = order;
    $("detail-name").textContent = row.name;
    $("detail-picture").replaceChildren(picture(row, job, true) ?? t("classify.no_picture"));
    $("detail-facts").replaceChildren(...this.#facts(row));
    $("explain").hidden = !row.probabilities;
    $("explain").removeAttribute("aria-disabled");
    $("explained").textContent = "";
    // Not `disabled`: the button would lose the focus, and the dialog its arrow keys.
    $("previous").setAttribute("aria-disabled", !this.#neighbour(-1));
    $("next").setAttribute("aria-disabled", !this.#neighbour(1));
    if (!this.dialog.open) this.dialog.showModal();
  }

  /** Show the row anew, if it is the one that is looked at. */
  renew(row) {
    if (this.row !== row || !this.dialog.open) return;
    const focused = document.activeElement?.dataset.label;
    $("detail-facts").replaceChildren(...this.#facts(row));
    if (focused !== undefined) $("detail-facts").querySelector(`[data-label="${CSS.escape(focused)}"]`)?.focus();
  }

  #neighbour(by) {
    return this.order[this.order.indexOf(this.row) + by];
  }

  #step(by) {
    const row = this.#neighbour(by);
    if (!row) return;
    this.show(row, this.job);
    $("looked").textContent = [row.name, classOf(row), sharesOf(row).map(percent).join(", "), t(`classify.status.${row.correction ? "corrected" : row.status}`)].filter(Boolean).join(", ");
  }

  /** Lay what the class rests on over the picture. */
  async #explain(row) {
    if ($("explain").hasAttribute("aria-disabled")) return;
    $("explain").setAttribute("aria-disabled", "true");
    $("explained").textContent = t("classify.explaining");
    try {
      const response = await request(`/jobs/${this.job}/files/${row.number}/explanation`, { method: "POST" });
      const found = await response.json();
      if (this.row !== row) return; // the visitor has gone on
      const map = h("img", { className: "heat", src: `data:image/png;base64,${found.heatmap_png}`, alt: "" });
      $("detail-picture").append(map);
      const parts = { label: found.label, warmest: percent(found.without_warmest), coolest: percent(found.without_coolest) };
      $("explained").textContent = `${t("classify.explained", parts)} ${t("classify.colours")}`;
    } catch (error) {
      if (this.row !== row) return;
      $("explain").removeAttribute("aria-disabled");
      $("explained").textContent = explain(error);
    }
  }

  #facts(row) {
    const facts = [
      [t("classify.status"), t(`classify.status.${row.status}`)],
      ...(row.values ?? []).map(({ name, shown, doubt }) => [name, doubt ? `${shown} (${t("classify.status.review")})` : shown]),
      [t("classify.class"), row.values ? null : row.correction ? `${row.correction} (${t("classify.by_hand")})` : ownClass(row)],
      [t("classify.novelty"), row.novelty === undefined ? null : decimal(row.novelty, 2)],
      [t("classify.size"), bytes(row.size)],
      [t("classify.number"), count(row.number + 1)],
    ].filter(([, value]) => value !== null && value !== undefined);
    const list = h("dl", { className: "facts" }, ...facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
    if (row.error) {
      return [h("p", { className: "failure" }, explainFile(row.name, row.error)), h("p", { className: "muted", lang: "en" }, row.error.message), list];
    }
    return [this.#chances(row), list];
  }

  /** A box to put an independent label in or to leave it out. */
  #switch(row, label) {
    const box = h("input", { type: "checkbox", "data-label": label, onchange: () => this.set(row, label) });
    box.checked = labelsOf(row).includes(label);
    return h("label", {}, box, label);
  }

  #chances(row) {
    const ranked = (row.probabilities ?? []).map((p, place) => ({ p, label: this.labels[place] })).sort((a, b) => b.p - a.p);
    return h("dl", { className: "chances" }, ...ranked.flatMap(({ p, label }) => [
      h("dt", {}, numbered(this.labels.indexOf(label)), row.independent ? this.#switch(row, label) : label),
      h("dd", {}, h("meter", { min: 0, max: 1, value: p, "aria-label": label }), h("span", { className: "number" }, percent(p))),
    ]));
  }
}

/** The key that chooses the class of that place; there are nine. */
const numbered = (place) => (place < 9 ? h("kbd", {}, String(place + 1)) : null);
