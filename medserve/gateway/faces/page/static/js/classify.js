// The page that sorts images: files in, a table that fills, corrections, downloads.

import { Corrections } from "./corrections.js";
import { Detail } from "./detail.js";
import { $, agreed, h, oncePerFrame } from "./dom.js";
import { onFiles } from "./dropping.js";
import { ERRORS, REVIEW, classOf, selected, tally } from "./files.js";
import { count, explain, language, page, percent, t } from "./page.js";
import { picture } from "./pictures.js";
import { request } from "./server.js";
import { Uploads } from "./uploads.js";
import { WindowedRows } from "./window.js";

const COLUMNS = 6;

const state = {
  job: page.job,
  rows: [],
  byNumber: new Map(),
  view: { folder: null, words: "", sort: null, descending: false },
  uploads: null,
  corrections: null,
  detail: null,
  shown: [],
};

const update = oncePerFrame(draw);
const table = new WindowedRows($("table"), $("rows"), COLUMNS, { make: makeRow, drop: () => {} });

// ---- a job and its files

async function begin() {
  if (state.job === null) {
    const [model, version] = $("model").value.split("@");
    const response = await request("/jobs", { method: "POST", json: { kind: "classify", model, version } });
    state.job = await response.json();
    history.replaceState(null, "", `/classify/${state.job.id}`);
  }
  const { id, labels } = state.job;
  $("model").disabled = true;
  state.uploads = new Uploads(`/jobs/${id}/files`, page.limits, hear);
  state.corrections = new Corrections(`/jobs/${id}/classes`, merge, update);
  state.detail = new Detail(labels, (row, step) => state.shown[state.shown.indexOf(row) + step]);
  for (const format of ["zip", "csv", "json"]) $(format).href = `/jobs/${id}/results.${format}`;
}

let beginning = null;

async function take(found) {
  try {
    await (beginning ??= begin());
  } catch (error) {
    beginning = null;
    say(explain(error));
    $("work").hidden = false;
    return;
  }
  const fresh = found.map(({ name, file }, place) => ({
    number: state.rows.length + place, name, file, size: file.size, status: "waiting", correction: null,
  }));
  for (const row of fresh) {
    state.rows.push(row);
    state.byNumber.set(row.number, row);
  }
  state.uploads.add(fresh);
  update();
}

function hear({ sending, part, answered, failed, error }) {
  for (const row of sending ?? []) setPart(row, part);
  if (answered) merge(answered);
  for (const row of failed ?? []) {
    const stopped = error.name === "AbortError";
    row.status = error.code === "PAYLOAD_TOO_LARGE" ? "error" : stopped ? "waiting" : "failed";
    row.stopped = stopped;
    row.error = stopped ? null : { code: error.code, message: error.message };
    table.renew(row);
  }
  update();
}

function setPart(row, part) {
  const before = Math.floor((row.part ?? 0) * 20);
  row.part = part;
  if (Math.floor(part * 20) !== before) table.renew(row);
}

/** Take over what the server says of files. */
function merge(files) {
  for (const file of files) {
    const row = state.byNumber.get(file.number);
    if (!row) continue;
    Object.assign(row, { error: null }, file);
    table.renew(row);
  }
  update();
}

async function restore() {
  await (beginning ??= begin());
  const response = await request(`/jobs/${state.job.id}`);
  const { files } = await response.json();
  for (const file of files) {
    const row = { ...file, file: null };
    state.rows.push(row);
    state.byNumber.set(row.number, row);
  }
  update();
}

// ---- what is seen

function draw() {
  const { rows, job, view } = state;
  const labels = job?.labels ?? [];
  const started = rows.length > 0;
  $("work").hidden = !started;
  $("drop").classList.toggle("small", started);
  state.shown = selected(rows, view, labels, language);
  table.show(state.shown);
  $("nothing").hidden = !started || state.shown.length > 0;
  drawFolders(labels);
  drawProgress();
  $("undo").disabled = !state.corrections?.done.length;
  $("redo").disabled = !state.corrections?.undone.length;
  for (const heading of document.querySelectorAll("[data-sort]")) {
    const order = heading.dataset.sort !== view.sort ? "none" : view.descending ? "descending" : "ascending";
    heading.setAttribute("aria-sort", order);
  }
}

function drawProgress() {
  const answered = state.rows.filter((row) => row.status !== "waiting" && row.status !== "failed").length;
  const failed = state.rows.filter((row) => row.status === "failed" || row.stopped).length;
  const running = answered + failed < state.rows.length;
  $("progress").value = answered;
  $("progress").max = state.rows.length || 1;
  $("progress").hidden = !running;
  $("stop").hidden = !running;
  $("again").hidden = running || !state.rows.some((row) => (row.status === "failed" || row.stopped) && row.file);
  const whole = { done: count(answered), all: count(state.rows.length), failed: count(failed) };
  if (running) say(t("classify.running", whole));
  else say(t(failed ? "classify.done_but" : "classify.done", whole));
  state.running = running;
  $("downloads").setAttribute("aria-busy", running);
}

function say(text) {
  if ($("said").textContent !== text) $("said").textContent = text;
}

function drawFolders(labels) {
  const counts = tally(state.rows, labels);
  const buttons = [folderButton(null, t("classify.all"), state.rows.length)];
  for (const [folder, files] of counts) buttons.push(folderButton(folder, folder, files));
  const special = buttons.splice(1 + labels.length);
  const focused = document.activeElement?.dataset.folder;
  $("folders").replaceChildren(...buttons, h("div", { className: "special" }, ...special));
  if (focused !== undefined) $("folders").querySelector(`[data-folder="${CSS.escape(focused)}"]`)?.focus();
}

function folderButton(folder, name, files) {
  const hint = { [REVIEW]: t("classify.review_hint"), [ERRORS]: t("classify.errors_hint") }[folder];
  return h("button", {
    type: "button", "aria-pressed": String(state.view.folder === folder), "data-folder": folder ?? "", title: hint ?? null,
    onclick: () => {
      state.view.folder = state.view.folder === folder ? null : folder;
      update();
    },
  }, h("span", {}, name), h("span", {}, count(files)));
}

// ---- a row

function makeRow(row) {
  const image = picture(row, state.job?.id);
  const open = h("button", {
    type: "button", className: image ? "thumb" : "thumb none", "aria-label": t("classify.look", { name: row.name }), "data-focus": "look",
    onclick: () => state.detail.show(row, state.job.id),
  }, image ?? "–");
  const cut = row.name.lastIndexOf("/") + 1;
  const labels = state.job.labels;
  const chosen = classOf(row);
  return h("tr", { className: row.correction ? "file corrected" : "file" },
    h("td", { className: "c-thumb" }, open),
    h("td", { className: "c-name", title: row.name },
      h("span", { className: "name" }, row.name.slice(cut), cut ? h("small", {}, row.name.slice(0, cut)) : null)),
    h("td", { className: "c-id" }, chosen === null ? "–" : String(labels.indexOf(chosen))),
    h("td", { className: "c-class" }, row.status === "waiting" || row.status === "failed" ? "–" : classChoice(row, labels)),
    h("td", { className: "c-probability" }, row.probability === undefined ? "–" : h("span", { className: "bar" },
      h("meter", { min: 0, max: 1, value: row.probability, "aria-hidden": "true" }), h("span", {}, percent(row.probability)))),
    h("td", { className: "c-status" }, h("span", { className: `status ${row.correction ? "corrected" : row.status}`, title: row.error ? explain(row.error) : null }, statusText(row))),
  );
}

function statusText(row) {
  if (row.correction) return t("classify.status.corrected");
  if (row.status === "waiting" && row.stopped) return t("classify.status.stopped");
  if (row.status === "waiting" && row.part > 0 && row.part < 1) return t("classify.status.sending", { part: percent(row.part) });
  return t(`classify.status.${row.status}`);
}

function classChoice(row, labels) {
  const choice = h("select", {
    "aria-label": t("classify.class_of", { name: row.name }), "data-focus": "class",
    onchange: (event) => {
      const chosen = event.target.value || null;
      change(row, chosen === row.label ? null : chosen);
    },
  });
  if (!row.label) choice.append(h("option", { value: "" }, t("classify.no_class")));
  choice.append(...labels.map((label) => h("option", { value: label }, label)));
  choice.value = classOf(row) ?? "";
  return choice;
}

async function change(row, chosen) {
  try {
    await state.corrections.set(row.number, row.correction, chosen);
  } catch (error) {
    table.renew(row);
    say(explain(error));
  }
}

async function travel(step) {
  try {
    const number = await step;
    if (number !== null) say(t("classify.changed", { name: state.byNumber.get(number).name }));
  } catch (error) {
    say(explain(error));
  }
}

// ---- what the visitor does

for (const heading of document.querySelectorAll("[data-sort]")) {
  heading.querySelector("button").addEventListener("click", () => {
    const { view } = state;
    if (view.sort !== heading.dataset.sort) Object.assign(view, { sort: heading.dataset.sort, descending: false });
    else if (!view.descending) view.descending = true;
    else Object.assign(view, { sort: null, descending: false });
    update();
  });
}
$("search").addEventListener("input", (event) => {
  state.view.words = event.target.value;
  update();
});
$("stop").addEventListener("click", () => state.uploads.stop());
$("again").addEventListener("click", () => {
  const rows = state.rows.filter((row) => (row.status === "failed" || row.stopped) && row.file);
  for (const row of rows) Object.assign(row, { status: "waiting", error: null, stopped: false, part: 0 });
  state.uploads.add(rows);
  update();
});
$("undo").addEventListener("click", () => travel(state.corrections.undo()));
$("redo").addEventListener("click", () => travel(state.corrections.redo()));
addEventListener("keydown", (event) => {
  const typing = event.target.matches("input[type=search], input[type=text]");
  if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z" || typing || !state.corrections) return;
  event.preventDefault();
  travel(event.shiftKey ? state.corrections.redo() : state.corrections.undo());
});
$("delete").addEventListener("click", async () => {
  if (!(await agreed($("confirm")))) return;
  state.uploads.stop();
  state.running = false;
  await request(`/jobs/${state.job.id}`, { method: "DELETE" }).catch((error) => say(explain(error)));
  location.assign("/classify");
});
addEventListener("beforeunload", (event) => state.running && event.preventDefault());

$("formats").textContent = t("classify.formats");
onFiles(take);
if (state.job) {
  $("model").value = `${state.job.model}@${state.job.version}`;
  restore().catch((error) => say(explain(error)));
}
