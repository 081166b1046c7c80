// The page that sorts images: files in, a table that fills, corrections, downloads.

import { chosen, startModel, valueOf } from "./choosing.js";
import { Corrections } from "./corrections.js";
import { Detail } from "./detail.js";
import { $, agreed, h, oncePerFrame, remember, remembered } from "./dom.js";
import { onFiles } from "./dropping.js";
import { Arrivals } from "./arrivals.js";
import { Grid } from "./grid.js";
import { ERRORS, NONE, REVIEW, SEVERAL, classOf, isOpen, labelsOf, leastOf, ownClass, selected, tally, withLabel } from "./files.js";
import { count, explain, explainFile, language, page, percent, t } from "./page.js";
import { picture } from "./pictures.js";
import { deleteJobs, listed, request } from "./server.js";
import { Uploads } from "./uploads.js";
import { WindowedRows } from "./window.js";

const ANNOUNCED_AT_ONCE = 400; // names: a message stays below a megabyte
const PICTURES = "medserve.classify.pictures"; // where the browser keeps whether pictures or rows are shown

const state = {
  job: page.job,
  rows: [],
  byNumber: new Map(),
  view: { folder: null, words: "", sort: null, descending: false },
  pictures: false,
  first: new Map(), // by content: the first file that has it
  uploads: null,
  corrections: null,
  detail: null,
  shown: [],
  arrivals: new Arrivals(),
  another: "",
};

const update = oncePerFrame(draw);
const table = new WindowedRows($("rows"), {
  make: makeRow,
  place: (row, index) => row.setAttribute("aria-rowindex", index + 2), // the heading counts
  space: () => h("tr", { className: "space", "aria-hidden": "true" }, h("td")),
});
const grid = new Grid({
  look: enlarge,
  set: choose,
  said: (row) => ({ text: statusText(row), kind: row.correction ? "corrected" : row.status }),
  job: () => state.job?.id,
});

// ---- a job and its files

let beginning = null;

/** Wait until there is a job, with the files that it had before: new ones are numbered behind them. */
function begun() {
  beginning ??= begin();
  beginning.catch(() => (beginning = null));
  return beginning;
}

async function begin() {
  const isKept = state.job !== null;
  if (!isKept) {
    const { name: model, version } = chosen();
    const response = await request("/jobs", { method: "POST", json: { kind: "classify", model, version } });
    state.job = await response.json();
    $("model").value = valueOf({ name: model, version }); // if another one was chosen meanwhile
    history.replaceState(null, "", `/classify/${state.job.id}`);
  }
  const { id, labels, values } = state.job;
  state.uploads = new Uploads(`/jobs/${id}`, page.limits, hear);
  state.corrections = new Corrections(`/jobs/${id}/classes`, merge, update);
  state.detail = new Detail(labels, (row, label) => choose([row], label), backTo);
  grid.offer(labels);
  showsNumbers(values.length > 0);
  for (const format of ["zip", "csv", "json"]) $(format).href = `/jobs/${id}/results.${format}`;
  $("corrections").href = `/jobs/${id}/corrections.csv`;
  if (isKept) await restore();
}

/** Numbers have neither id nor probability, and nothing to sort into folders or to correct. */
function showsNumbers(does) {
  document.body.classList.toggle("numbers", does);
  if (does) $("told").textContent = t("classify.values");
}

async function take(found) {
  try {
    await begun();
  } catch (error) {
    say(explain(error));
    $("work").hidden = false;
    return;
  }
  const { fresh, again, known } = state.arrivals.sort(found, state.rows);
  for (const row of fresh) put(row);
  $("known").hidden = known === 0;
  $("known").textContent = t("classify.known", { n: count(known) });
  send([...again, ...fresh]);
}

function put(row) {
  const { labels, independent } = state.job;
  Object.assign(row, { labels, independent });
  state.rows.push(row);
  state.byNumber.set(row.number, row);
}

/** Announce files, so that the job knows what is missing if this page is closed, and send them. */
async function send(rows) {
  for (const row of rows) Object.assign(row, { status: "waiting", error: null, stopped: false, part: 0 });
  update();
  const path = `/jobs/${state.job.id}/announcement`;
  const unknown = rows.filter((row) => !row.stored && !row.announced);
  try {
    for (let first = 0; first < unknown.length; first += ANNOUNCED_AT_ONCE) {
      const some = unknown.slice(first, first + ANNOUNCED_AT_ONCE);
      await request(path, { method: "POST", json: { files: some.map(listed) } });
      for (const row of some) row.announced = true;
    }
    state.uploads.add(rows);
  } catch (error) {
    hear({ failed: rows, error });
  }
}

function hear({ sending, part, answered, failed, error }) {
  for (const row of sending ?? []) setPart(row, part);
  if (answered) merge(answered);
  for (const row of failed ?? []) {
    const stopped = error.name === "AbortError";
    row.status = error.code === "PAYLOAD_TOO_LARGE" ? "error" : stopped ? "waiting" : "failed";
    row.stopped = stopped;
    row.error = stopped ? null : { code: error.code, message: error.message };
    renew(row);
  }
  update();
}

function setPart(row, part) {
  const before = Math.floor((row.part ?? 0) * 20);
  row.part = part;
  if (Math.floor(part * 20) !== before) renew(row);
}

function renew(row) {
  table.renew(row);
  grid.renew(row);
}

/** Take over what the server says of files. */
function merge(files) {
  for (const file of files) {
    const row = state.byNumber.get(file.number);
    if (!row) continue;
    Object.assign(row, { error: null, stored: file.status !== "missing" }, file);
    if (file.sha256 && !state.first.has(file.sha256)) state.first.set(file.sha256, row);
    renew(row);
    state.detail?.renew(row);
  }
  update();
}

async function restore() {
  const response = await request(`/jobs/${state.job.id}`);
  const { files } = await response.json();
  for (const file of files) {
    const stored = file.status !== "missing";
    put({ ...file, file: null, stored, announced: true });
  }
  merge(files);
  update();
  send(state.rows.filter(({ status }) => status === "waiting")); // the server has these files
}

// ---- what is seen

function draw() {
  const { rows, job, view } = state;
  const labels = job?.labels ?? [];
  const started = rows.length > 0;
  $("work").hidden = !started;
  $("drop").classList.toggle("small", started);
  state.shown = selected(rows, view, labels, language);
  $("table").hidden = state.pictures;
  $("grid").hidden = $("picks").hidden = !state.pictures;
  $("table").setAttribute("aria-rowcount", state.shown.length + 1);
  table.show(state.pictures ? [] : state.shown);
  grid.show(state.pictures ? state.shown : []);
  $("nothing").hidden = !started || state.shown.length > 0;
  drawFolders(labels, job);
  drawProgress();
  $("corrections").hidden = !rows.some(({ correction }) => correction);
  $("pictures").setAttribute("aria-pressed", String(state.pictures));
  $("doubtful").setAttribute("aria-pressed", String(view.sort === "doubt"));
  $("undo").disabled = !state.corrections?.done.length;
  $("redo").disabled = !state.corrections?.undone.length;
  for (const heading of document.querySelectorAll("[data-sort]")) {
    const order = heading.dataset.sort !== view.sort ? "none" : view.descending ? "descending" : "ascending";
    heading.setAttribute("aria-sort", order);
  }
}

function drawProgress() {
  const { rows } = state;
  const of = (test) => rows.filter(test).length;
  const missing = of(({ status }) => status === "missing");
  const failed = of(({ status, stopped }) => status === "failed" || stopped);
  const answered = of((row) => !isOpen(row));
  const running = answered + failed + missing < rows.length;
  $("progress").value = answered;
  $("progress").max = rows.length || 1;
  $("progress").hidden = !running;
  $("stop").hidden = !running;
  $("again").hidden = running || !rows.some(canGoOn);
  const whole = { done: count(answered), all: count(rows.length), failed: count(failed + missing), missing: count(missing) };
  if (running) say(t("classify.running", whole));
  else if (missing) say(t("classify.unfinished", whole));
  else say(t(failed ? "classify.done_but" : "classify.done", whole));
  state.running = running;
  $("model").disabled = running || missing > 0 && !answered;
  $("downloads").setAttribute("aria-busy", running);
  $("zip").textContent = answered < rows.length ? t("classify.zip_part", whole) : t("classify.zip");
  drawAnother(running);
}

const canGoOn = (row) => (row.status === "failed" || row.stopped) && (row.stored || row.file);

/** Where most answers mean little, the model is probably the wrong one: offer the others. */
function drawAnother(running) {
  const answered = state.rows.filter(({ status }) => ["ok", "review", "unlike"].includes(status));
  const doubtful = answered.filter(({ status }) => status !== "ok").length;
  const offered = !running && answered.length > 0 && 2 * doubtful > answered.length;
  const key = offered ? `${doubtful}/${answered.length}` : "";
  if (key === state.another) return;
  state.another = key;
  $("another").hidden = !offered;
  if (!offered) return;
  const own = `${state.job.model}@${state.job.version}`;
  const others = page.models.filter((model) => valueOf(model) !== own && model.name !== state.job.model);
  const values = { model: state.job.model, n: count(doubtful), all: count(answered.length) };
  $("another").replaceChildren(
    h("p", {}, t("classify.doubtful", values), others.length ? ` ${t("classify.another")}` : ""),
    ...others.map((model) => h("button", { type: "button", onclick: () => rerun(model) }, t("classify.run_on", { model: model.name }))),
  );
}

/** The same files to another model: a job of its own, for which nothing is sent again. */
async function rerun({ name: model, version }) {
  try {
    const json = { kind: "classify", model, version, files_of: state.job.id };
    const { id } = await (await request("/jobs", { method: "POST", json })).json();
    state.running = false;
    location.assign(`/classify/${id}`);
  } catch (error) {
    say(explain(error));
    $("model").value = `${state.job.model}@${state.job.version}`;
  }
}

function say(text) {
  if ($("said").textContent !== text) $("said").textContent = text;
}

function drawFolders(labels, job) {
  const counts = tally(state.rows, job ?? undefined);
  const buttons = [folderButton(null, t("classify.all"), state.rows.length)];
  for (const [folder, files] of counts) buttons.push(folderButton(folder, folder, files));
  const special = buttons.splice(1 + labels.length);
  const focused = document.activeElement?.dataset.folder;
  $("folders").replaceChildren(...buttons, h("div", { className: "special" }, ...special));
  if (focused !== undefined) $("folders").querySelector(`[data-folder="${CSS.escape(focused)}"]`)?.focus();
}

function folderButton(folder, name, files) {
  const hint = {
    [NONE]: t("classify.none_hint"), [SEVERAL]: t("classify.several_hint"),
    [REVIEW]: t("classify.review_hint"), [ERRORS]: t("classify.errors_hint"),
  }[folder];
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
    onclick: () => enlarge(row),
  }, image ?? "–");
  const cut = row.name.lastIndexOf("/") + 1;
  const labels = state.job.labels;
  const ids = labelsOf(row).map((label) => labels.indexOf(label));
  const least = leastOf(row); // one line: all rows are equally high
  const below = reasonOf(row) ?? row.name.slice(0, cut);
  return h("tr", { className: row.correction ? "file corrected" : "file" },
    h("td", { className: "c-thumb" }, open),
    h("td", { className: "c-name", title: row.name },
      h("span", { className: "name" }, row.name.slice(cut)),
      below ? h("small", {}, below) : null,
      statusChip(row, "narrow")), // of which a phone has no column
    h("td", { className: "c-id" }, ids.join("; ") || "–"),
    h("td", { className: "c-class" }, isOpen(row) ? "–" : classChoice(row, labels)),
    h("td", { className: "c-probability" }, least === null ? "–" : h("span", { className: "bar" },
      h("meter", { min: 0, max: 1, value: least, "aria-hidden": "true" }), h("span", {}, percent(least)))),
    h("td", { className: "c-status" }, statusChip(row, "wide")),
  );
}

/** Why a person should look at a file, or why it has no answer; null where all is well. */
function reasonOf(row) {
  if (row.error) return explainFile(row.name, row.error);
  const key = !row.correction && { review: "classify.reason.review", unlike: "classify.reason.unlike" }[row.status];
  const twin = state.first.get(row.sha256) ?? row;
  return [row.values ? doubtsOf(row) : key && t(key), twin !== row && t("classify.twin", { name: twin.name })].filter(Boolean).join(" ") || null;
}

/** Which numbers lie outside of the range that the model states. */
function doubtsOf(row) {
  const ranges = new Map(state.job.values.map(({ name, range }) => [name, range]));
  const said = ({ name, shown }) => t("classify.reason.range", { name, shown, low: ranges.get(name)[0], high: ranges.get(name)[1] });
  return row.values.filter(({ name, doubt }) => doubt && ranges.get(name)).map(said).join(" ");
}

/** Look closer at a file; the arrows follow the order of now, whatever a correction makes of it. */
function enlarge(row) {
  state.detail.show(row, state.job.id, [...state.shown]);
}

/** After a closer look: the focus goes to that file, else to what finds files. */
function backTo(row) {
  const margin = { above: document.querySelector(".sheet .toolbar").offsetHeight + 64, below: 16 };
  if (state.pictures) grid.focus(row);
  else if (!table.focus(row, "look", margin)) $("search").focus();
}

function statusChip(row, where) {
  return h("span", { className: `status ${where} ${row.correction ? "corrected" : row.status}` }, statusText(row));
}

function statusText(row) {
  if (row.correction) return t("classify.status.corrected");
  if (row.status === "waiting" && row.stopped) return t("classify.status.stopped");
  if (row.status === "waiting" && row.part > 0 && row.part < 1) return t("classify.status.sending", { part: percent(row.part) });
  return t(`classify.status.${row.status}`);
}

function classChoice(row, labels) {
  if (state.job.values.length) return h("span", { title: classOf(row) }, classOf(row) ?? "–");
  if (row.independent) {
    return h("button", {
      type: "button", title: classOf(row), "aria-label": `${t("classify.class_of", { name: row.name })}: ${classOf(row) ?? t("classify.no_class")}`, "data-focus": "class",
      onclick: () => enlarge(row),
    }, classOf(row) ?? t("classify.no_class"));
  }
  const choice = h("select", {
    "aria-label": t("classify.class_of", { name: row.name }), "data-focus": "class",
    onchange: (event) => choose([row], event.target.value || null),
  });
  if (!row.label) choice.append(h("option", { value: "" }, t("classify.no_class")));
  choice.append(...labels.map((label) => h("option", { value: label }, label)));
  choice.value = classOf(row) ?? "";
  return choice;
}

/**
 * A class by hand, for one file or many in one step; the model's own is no correction. An independent label
 * is put in or, where all have it, left out.
 */
async function choose(rows, label) {
  const isThere = !rows.every((row) => labelsOf(row).includes(label));
  const changes = rows.map((row) => {
    const after = row.independent && label ? withLabel(row, label, isThere) : label;
    return { number: row.number, before: row.correction, after: after === ownClass(row) ? null : after };
  });
  try {
    await state.corrections.set(changes);
    tell(rows);
  } catch (error) {
    rows.forEach(renew);
    say(explain(error));
  }
}

/** Take a step back or again, and say of which files; after a reload these have to be there first. */
async function travel(step) {
  try {
    await begun();
    const numbers = await state.corrections[step]();
    tell((numbers ?? []).map((number) => state.byNumber.get(number)).filter(Boolean));
  } catch (error) {
    say(explain(error));
  }
}

/** Say aloud what files are now. */
function tell(rows) {
  if (!rows.length) return;
  const labels = new Set(rows.map((row) => classOf(row) ?? t("classify.no_class")));
  const values = { name: rows[0].name, n: count(rows.length), label: [...labels].join(", ") };
  const said = $("detail").open ? "looked" : "moved"; // what lies behind an open dialog is not read
  $(said).textContent = t(rows.length === 1 ? "classify.moved_to" : "classify.moved_many", values);
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
$("doubtful").addEventListener("click", () => {
  Object.assign(state.view, state.view.sort === "doubt" ? { sort: null } : { sort: "doubt", descending: false });
  update();
});
$("pictures").addEventListener("click", () => {
  state.pictures = !state.pictures;
  remember(PICTURES, state.pictures ? "yes" : "");
  update();
});
$("search").addEventListener("input", (event) => {
  state.view.words = event.target.value;
  update();
});
$("stop").addEventListener("click", () => state.uploads.stop());
$("again").addEventListener("click", () => {
  send(state.rows.filter(canGoOn));
});
$("undo").addEventListener("click", () => travel("undo"));
$("redo").addEventListener("click", () => travel("redo"));
addEventListener("keydown", (event) => {
  const typing = event.target.matches("input[type=search], input[type=text]");
  if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z" || typing || !state.corrections) return;
  event.preventDefault();
  travel(event.shiftKey ? "redo" : "undo");
});
$("delete").addEventListener("click", async () => {
  if (!(await agreed($("confirm")))) return;
  state.uploads.stop();
  state.running = false;
  await deleteJobs([state.job.id]).then(() => location.assign("/classify"), (error) => say(explain(error)));
});
addEventListener("beforeunload", (event) => state.running && event.preventDefault());

$("formats").textContent = t("classify.formats");
onFiles(take);
state.pictures = remembered(PICTURES) === "yes";
startModel("classify", () => state.job && rerun(chosen()));
if (state.job) {
  begun().catch((error) => say(explain(error)));
}
