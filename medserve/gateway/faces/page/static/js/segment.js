// The page that segments volumes and frames: files in, a viewer with the mask, measures, downloads.

import { casesOf, drawCases, titles } from "./cases.js";
import { chosen, startModel } from "./choosing.js";
import { $, agreed, h, save } from "./dom.js";
import { onFiles } from "./dropping.js";
import { FlatPicture } from "./flat.js";
import { chosenOptions, offerOptions } from "./options.js";
import { bytes, count, decimal, explain, page, t } from "./page.js";
import { deleteJobs, request, sendPack, ServerError } from "./server.js";
import { Viewer } from "./viewer.js";
import { zipped } from "./zip.js";

const AXES = ["x", "y", "z"];
const FRAME_COLUMNS = ["index", "status", "label", "pixels", "area_cm2", "width_mm", "height_mm", "touches_border", "predicted_dice", "unlike_ultrasound"];
const FILE = /(\.nii)?\.[a-z]{2,5}$/i;
const NIFTI = /\.nii(\.gz)?$/i;

const state = { job: page.job, jobs: page.job ? [page.job.id] : [], model: null, labels: [], answer: null, stopping: null, volume: null, cases: [], shown: null, flat: null };
const viewer = new Viewer($("viewer"), moved);

/** The text of a key in the words of a task: a frame is no volume, its pixels no voxels. */
const wording = (task, key, values) => t(`segment.${task}.${key}`, values);
const isSingle = ({ grid }) => grid?.frames === 1;

// ---- from files to an answer

async function take(found) {
  await answerEach(casesOf(found, state.model));
}

/** What is asked now: a visitor who chooses anew while cases are on their way means the next ones. */
function asked() {
  const { model } = state;
  return { model, options: chosenOptions($("options"), model.options) };
}

/** Send cases one after the other, and show the first that is answered. */
async function answerEach(given) {
  const wish = asked();
  state.stopping?.abort();
  const stopping = (state.stopping = new AbortController());
  fail(null);
  state.cases = given;
  state.jobs = []; // what the server holds of them
  state.shown = null;
  const { cases } = state;
  for (const each of cases) {
    listCases();
    try {
      each.answer = await answerTo(each, wish, stopping.signal);
      if (stopping !== state.stopping) return;
      if (!state.shown) await inTurn(() => open(each));
    } catch (error) {
      if (stopping !== state.stopping) return;
      each.error = error;
      if (cases.length === 1 || error.name === "AbortError") fail(error);
      if (error.name === "AbortError") break;
    }
  }
  listCases();
  if (cases.length > 1) done();
}

/** Send a case as a job of its own, and give what the model answers. */
async function answerTo(each, { model: { name: model, version, channels }, options }, signal) {
  const { files } = each;
  const size = files.reduce((sum, { file }) => sum + file.size, 0);
  if (size > page.limits.bytes) throw new ServerError(413, "PAYLOAD_TOO_LARGE", "");
  const begun = await request("/jobs", { method: "POST", json: { kind: "segment", model, version }, signal });
  each.job = await begun.json();
  state.jobs.push(each.job.id);
  const isFile = files.length === 1 || channels.length > 0;
  each.volume = isFile && NIFTI.test(files[0].name) ? files[0].file : null;
  if (!state.shown) {
    use(each);
    $("rerun").hidden = true; // until the server has the files; of several cases until all are done
  }
  const entries = files.map(({ name, file, place }, number) => ({ number: place ?? number, name, file }));
  run(t("segment.sending", { size: bytes(size) }), 0);
  await sendPack(`/jobs/${each.job.id}/volume`, entries, { progress: (part) => ($("progress").value = part), signal });
  if (state.cases.length === 1) $("rerun").hidden = false;
  each.job = await (await request(`/jobs/${each.job.id}`, { signal })).json(); // it has a name now
  return ask(each.job, options, signal);
}

/** Take a case as the one that this page is about. */
function use({ job, volume }) {
  Object.assign(state, { job, volume });
  history.replaceState(null, "", `/segment/${job.id}`);
}

async function open(each) {
  if (!state.cases.includes(each)) return; // others came while it waited for its turn
  state.shown = each;
  use(each);
  listCases();
  await show(each.answer);
}

let drawn = Promise.resolve();

/** Draw once all before it is drawn: a mask lies on its own volume, however fast a visitor asks for another. */
function inTurn(draw) {
  const turn = drawn.then(draw);
  drawn = turn.catch(() => {});
  return turn;
}

function listCases() {
  const said = ({ answer, error, job }) => {
    if (error) return error.name === "AbortError" ? "–" : explain(error);
    if (answer) return t("segment.done", { found: count(measured(answer).filter(({ amount }) => amount).length) });
    return job ? "…" : t("segment.case_waiting");
  };
  drawCases(state.cases, state.shown, said, (each) => inTurn(() => open(each)).catch(fail));
}

function done() {
  $("stop").hidden = true;
  $("progress").hidden = true;
  $("rerun").hidden = !state.shown;
  const answered = state.cases.filter(({ answer }) => answer).length;
  $("said").textContent = t("segment.cases_done", { done: count(answered), all: count(state.cases.length) });
}

async function ask(job, options, signal) {
  const begun = performance.now();
  const tick = () => {
    const seconds = Math.round((performance.now() - begun) / 1000);
    $("said").setAttribute("aria-live", seconds ? "off" : "polite"); // a screen reader is not told each second
    run(t("segment.working", { seconds: count(seconds) }), null);
  };
  tick();
  const timer = setInterval(tick, 1000);
  try {
    return await (await request(`/jobs/${job.id}/segmentation`, { method: "POST", json: options, signal })).json();
  } finally {
    clearInterval(timer);
    $("said").setAttribute("aria-live", "polite");
  }
}

/** Ask again: the same model with other options, or another model, to which nothing is sent again. The other cases stay. */
async function rerun(signal) {
  const { model: { name: model, version }, options } = asked();
  const each = state.shown ?? state.cases[0] ?? {}; // none where an address was opened again
  const isSeen = () => !state.shown || state.shown === each;
  const { volume } = state;
  let { job } = state;
  if (job.model !== model || job.version !== version) {
    const json = { kind: "segment", model, version, files_of: job.id };
    const { id } = await (await request("/jobs", { method: "POST", json, signal })).json();
    state.jobs.push(id);
    job = await (await request(`/jobs/${id}`, { signal })).json();
    if (isSeen()) use({ job, volume });
  }
  const answer = await ask(job, options, signal);
  Object.assign(each, { job, volume, answer, error: null });
  if (!state.cases.length) state.cases = [each];
  if (isSeen()) await inTurn(() => open(each));
  else done();
  nameRerun();
}

/** The button says what it does: the same model again, or another one. */
function nameRerun() {
  const { job, model } = state;
  const same = !job || (job.model === model.name && job.version === model.version);
  $("rerun").textContent = same ? t("segment.rerun") : t("segment.run_on", { model: model.name });
}

function run(text, value) {
  $("running").hidden = false;
  $("stop").hidden = false;
  $("drop").classList.add("small");
  if (value === null) $("progress").removeAttribute("value");
  else $("progress").value = value;
  if ($("said").textContent !== text) $("said").textContent = text;
}

function fail(error) {
  $("running").hidden = true;
  $("failure").hidden = error === null || error.name === "AbortError";
  if ($("failure").hidden) return;
  $("failure").replaceChildren(explain(error), " ", h("span", { lang: "en" }, error.message));
}

// ---- what is seen

/** One row a structure: of a volume its voxels, of frames the pixels of all that were measured. */
function measured({ task, measures, frames, structures, labels, stack, grid }) {
  if (task === "volumes") return measures.map((each) => ({ ...each, amount: each.voxels, size: each.volume_ml }));
  const good = frames.filter(({ status }) => status === "ok");
  const found = structures?.length ? structures : [{ label: labels[1], label_id: 1, stack, frames: good }];
  return found.map(({ label, label_id, stack, frames }) => {
    const seen = frames.filter((frame) => frame !== null);
    return {
      label,
      label_id,
      amount: seen.reduce((sum, { pixels }) => sum + pixels, 0),
      size: isSingle({ grid }) ? stack.area_cm2 : stack.volume_ml,
      centroid_mm: measures.find((each) => each.label_id === label_id)?.centroid_mm ?? null,
      touches_border: seen.some((frame) => frame.touches_border),
      predicted_dice: isSingle({ grid }) ? seen[0]?.predicted_dice : null,
    };
  });
}

async function show(answer) {
  state.answer = { ...answer, measures: measured(answer) };
  state.labels = answer.labels.map((name, place) => ({ name, colour: answer.colours[place], shown: true }));
  $("work").hidden = false;
  $("case").textContent = state.job.case;
  drawMeasures();
  drawFacts();
  drawDownloads();
  drawCorrection();
  if (answer.parts.includes("mask.nii.gz") && Viewer.available && !answer.flat) await showVolume();
  else await showPicture();
  $("stop").hidden = true;
  $("progress").hidden = true;
  $("said").textContent = t("segment.done", { found: count(state.answer.measures.filter(({ amount }) => amount).length) });
}

async function showVolume() {
  for (const id of ["viewer", "viewer-tools", "views", "sliders", "place"]) $(id).hidden = false;
  state.flat = null;
  $("overlay").hidden = true;
  $("veil-choice").hidden = !state.answer.parts.includes("entropy.nii.gz");
  $("veil").checked = false;
  run(t("segment.drawing"), null);
  const { id } = state.job;
  const volume = state.volume ?? (await (await request(`/jobs/${id}/volume`)).blob());
  const part = state.answer.correction ? "corrected.nii.gz" : "mask.nii.gz";
  const mask = await (await request(`/jobs/${id}/${part}`)).blob();
  await viewer.show(volume);
  await viewer.lay(mask, state.labels, $("opacity").value / 100);
  // The sliders step from slice to slice.
  viewer.shape.forEach((size, place) => ($(`cross-${AXES[place]}`).max = Math.max(size - 1, 1)));
  viewer.view = document.querySelector("#views :checked").value;
  const largest = [...state.answer.measures].filter(({ centroid_mm }) => centroid_mm).sort((a, b) => b.amount - a.amount)[0];
  if (largest) viewer.go(largest.centroid_mm);
  $("viewer").dataset.ready = "yes";
}

/** A flat image, or a browser without WebGL: a frame or a sheet in place of the viewer. */
async function showPicture() {
  for (const id of ["viewer", "viewer-tools", "sliders", "place"]) $(id).hidden = true;
  if (!state.answer.flat && !Viewer.available) {
    $("warnings").hidden = false;
    $("warnings").append(` ${t("segment.no_viewer")}`);
  }
  const { id } = state.job;
  state.flat = await FlatPicture.load(id).catch(() => null); // else the model's own picture
  if (state.flat) return drawFlat();
  $("measures").querySelectorAll("input").forEach((input) => (input.disabled = true)); // nothing to act on
  $("overlay").hidden = !state.answer.parts.includes("overlay.png");
  if (!$("overlay").hidden) $("overlay").src = `/jobs/${id}/overlay.png?at=${Date.now()}`;
}

function drawFlat() {
  $("viewer-tools").hidden = $("overlay").hidden = false;
  $("views").hidden = $("veil-choice").hidden = true;
  $("overlay").src = state.flat.draw(state.labels, $("opacity").value / 100);
}

function drawMeasures() {
  $("size-heading").textContent = t(isSingle(state.answer) ? "segment.area" : "segment.volume");
  $("amount-heading").textContent = wording(state.answer.task, "amount");
  $("measures").replaceChildren(...state.answer.measures.map((measure) => {
    const label = state.labels[measure.label_id];
    const repaint = (change) => {
      Object.assign(label, change);
      if (state.flat) drawFlat();
      else viewer.paint(state.labels);
    };
    const named = { label: measure.label };
    return h("tr", {},
      h("td", {}, h("span", { className: "swatch" },
        h("input", { type: "checkbox", checked: true, "aria-label": t("segment.show_label", named), onchange: (event) => repaint({ shown: event.target.checked }) }),
        h("input", { type: "color", value: label.colour, "aria-label": t("segment.colour_of", named), oninput: (event) => repaint({ colour: event.target.value }) }))),
      h("td", {}, measure.label),
      h("td", { className: "number" }, sized(measure.size)),
      h("td", { className: "number" }, count(measure.amount)));
  }));
  const cut = state.answer.measures.filter(({ touches_border }) => touches_border).map(({ label }) => label);
  const unlike = (state.answer.frames ?? []).filter(({ unlike_ultrasound }) => unlike_ultrasound).length;
  const failed = (state.answer.frames ?? []).filter(({ status }) => status !== "ok").length;
  const reasons = state.answer.doubts.map(doubted);
  const said = [
    cut.length && wording(state.answer.task, "at_border", { labels: cut.join(", ") }),
    unlike && t("segment.unlike", { frames: count(unlike) }),
    state.answer.review && t("segment.review", { reasons: reasons.join(", ") }),
    failed && t("segment.failed_frames", { frames: count(failed) }),
  ].filter(Boolean);
  $("warnings").hidden = said.length === 0;
  $("warnings").textContent = said.join(" ");
}

/** A reason for a review; its numbers as the language writes them, what no text tells as the archive says it. */
function doubted({ reason, message, sentence, values, frames }) {
  const spoken = (numbers) => Object.fromEntries(Object.entries(numbers).map(([name, value]) =>
    [name, name === "label" ? value : value.replace(/\d+(?:\.(\d+))?/g, (number, decimals = "") => decimal(Number(number), decimals.length))]));
  let told = sentence ? t(`segment.told.${sentence}`, spoken(values)) : message;
  if (frames) told = t("segment.told.of_frames", { ...spoken(frames), told });
  return sentence === "nothing" ? t(`segment.doubt.${reason}`) : `${t(`segment.doubt.${reason}`)} (${told})`;
}

function sized(number) {
  return number === null ? "–" : decimal(number, number < 10 ? 3 : 1);
}

const sides = (lengths, digits) => `${lengths.map((mm) => (mm === null ? "–" : decimal(mm, digits))).join(" × ")} ${t("unit.mm")}`;

/** What was measured of frames: nothing stands where nobody states the lengths. */
function frameFacts({ stack, grid }) {
  const facts = [[t("segment.frames.shape"), `${grid.columns} × ${grid.rows}`]];
  if (grid.spacing_mm) facts.push([t("segment.frames.spacing"), sides(grid.spacing_mm, 3)]);
  if (grid.step_mm) facts.push([t("segment.step"), `${decimal(grid.step_mm, 2)} ${t("unit.mm")}`]);
  if (grid.frames > 1) {
    facts.push([t("segment.frames_found"), `${count(stack.frames_found)} / ${count(grid.frames)}`]);
    if (stack.area_cm2 !== null) facts.push([t("segment.largest_area"), `${decimal(stack.area_cm2, 2)} ${t("unit.cm2")}`]);
  }
  const lengths = [stack.width_mm, stack.height_mm, stack.length_mm];
  if (stack.width_mm !== null) facts.push([t("segment.diameters"), sides(lengths, 1)]);
  if (stack.ellipsoid_ml !== null) facts.push([t("segment.ellipsoid"), `${sized(stack.ellipsoid_ml)} ${t("unit.ml")}`]);
  return facts;
}

function volumeFacts({ shape, spacing_mm }) {
  return [[t("segment.volumes.shape"), shape.join(" × ")], [t("segment.volumes.spacing"), sides(spacing_mm, 2)]];
}

/** A fact for each structure of which there is something to tell. */
function told(key, measures, text) {
  return measures.filter(text).map((measure) => [`${t(key)}, ${measure.label}`, text(measure)]);
}

function drawFacts() {
  const { model, version, archive_digest, task, measures } = state.answer;
  const facts = [
    [t("common.model"), `${model} ${version}`],
    ...(task === "frames" ? frameFacts : volumeFacts)(state.answer),
    ...told("segment.interval", measures, ({ volume_interval_ml: ends }) => ends && ends.map(sized).join(" – ")),
    ...told("segment.predicted_dice", measures, ({ predicted_dice: dice }) => dice && decimal(dice, 2)),
    [t("segment.digest"), h("code", {}, archive_digest)],
  ];
  $("facts").replaceChildren(...facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

function drawDownloads() {
  const { id } = state.job;
  const { parts } = state.answer;
  const offer = (element, part, there) => {
    $(element).hidden = !there;
    $(element).href = `/jobs/${id}/${part}?download`;
  };
  const files = { "get-png": "mask.png", "get-nifti": "mask.nii.gz", "get-overlay": "overlay.png", "get-entropy": "entropy.nii.gz" };
  for (const [element, part] of Object.entries(files)) offer(element, part, parts.includes(part));
  const single = parts.includes("mask.png"); // what most programs open comes first
  $("get-png").classList.toggle("primary", single);
  $("get-nifti").classList.toggle("primary", !single);
  offer("get-seg", "mask.dcm", state.answer.dicom);
}

function moved({ mm, vox, value, label }) {
  const at = viewer.position;
  AXES.forEach((axis, place) => ($(`cross-${axis}`).value = Math.floor(at[place] * viewer.shape[place])));
  const { task } = state.answer;
  const place = task === "frames" ? vox.map(count) : mm.map((x) => decimal(x, 1));
  const values = { place: place.join(" / "), value: value === undefined ? "–" : decimal(value, 1) };
  $("place").textContent = wording(task, "place", values) + (label ? ` · ${label}` : "");
}

/** Name things as the task of the chosen model does, and offer its options. */
function choose() {
  state.model = chosen();
  const { task, options } = state.model;
  for (const [id, key] of [["lead", "lead"], ["drop-title", "drop"], ["formats", "formats"]]) $(id).textContent = wording(task, key);
  $("choose-folder").hidden = task === "frames"; // its files are whole stacks
  $("viewer").setAttribute("aria-label", wording(task, "canvas"));
  for (const axis of AXES) $(`axis-${axis}`).textContent = wording(task, `axis.${axis}`);
  offerOptions($("options"), options, state.job?.options);
  offerChannels();
}

/** A place for the file of each image that the model sees; it starts once all are filled. */
function offerChannels() {
  const { channels } = state.model;
  $("channels").hidden = channels.length === 0;
  const inputs = channels.map((name, place) => h("input", { type: "file", id: `channel-${place}`, "data-place": String(place) }));
  const begin = () => {
    if (!inputs.every(({ files }) => files.length)) return;
    const files = inputs.map(({ files: [file] }, place) => ({ name: file.name, file, place }));
    for (const input of inputs) input.value = "";
    answerEach([{ name: files[0].name, files }]);
  };
  for (const input of inputs) input.addEventListener("change", begin);
  $("channel-slots").replaceChildren(...inputs.map((input, place) => h("label", { className: "field" }, h("span", {}, channels[place]), input)));
  $("channels-rule").textContent = t("segment.channels_rule", {
    names: channels.map((name, place) => `${name}: …_${String(place).padStart(4, "0")}`).join(", "),
  });
}

// ---- what the visitor does

startModel("segment", () => {
  choose();
  nameRerun();
});
choose();
onFiles(take);
$("stop").addEventListener("click", () => state.stopping?.abort());
$("opacity").addEventListener("input", (event) => {
  if (state.flat) drawFlat();
  else viewer.opacity = event.target.value / 100;
});
for (const choice of document.querySelectorAll("#views input")) {
  choice.addEventListener("change", (event) => (viewer.view = event.target.value));
}
for (const axis of AXES) {
  $(`cross-${axis}`).addEventListener("input", () => (viewer.position = AXES.map((each, place) => (Number($(`cross-${each}`).value) + 0.5) / viewer.shape[place])));
}
/** Where the model is unsure, over image and mask. */
async function veil() {
  try {
    const map = $("veil").checked ? await (await request(`/jobs/${state.job.id}/entropy.nii.gz`)).blob() : null;
    await viewer.veil(map);
  } catch (error) {
    $("veil").checked = false;
    fail(error);
  }
}

$("veil").addEventListener("change", () => inTurn(veil));

/** A row for each structure in each frame. */
function frameRows({ frames, structures, labels }) {
  if (!structures?.length) return frames.map((frame) => ({ ...frame, label: labels[1] }));
  return frames.flatMap((frame, place) => (frame.status === "ok" ? structures.map(({ label, frames: own }) => ({ ...frame, ...own[place], label })) : [frame]));
}

/** Lines of a table of measures, one a structure or a frame, with the columns `before` them. */
function table(answer) {
  const [columns, rows] = answer.task === "frames" ? [FRAME_COLUMNS, frameRows(answer)] : [["label", "label_id", "voxels", "volume_ml", "predicted_dice"], answer.measures];
  return { columns, lines: rows.map((row) => columns.map((name) => row[name] ?? "").join(",")) };
}

const csv = (lines) => new Blob([[...lines, ""].join("\r\n")], { type: "text/csv" });

$("get-csv").addEventListener("click", () => {
  const { columns, lines } = table(state.answer);
  save(csv([columns.join(","), ...lines]), `${state.job.case.split("/").pop().replace(FILE, "")}-measures.csv`);
});

/** One table of all cases; a name is quoted and never a formula. */
function allMeasures() {
  const names = titles(state.cases);
  const found = state.cases.flatMap(({ answer }, place) => (answer ? [{ ...table(answer), name: names[place] }] : []));
  const quoted = (name) => `"${name.replace(/^(?=[=+@\t-])/, "'").replaceAll('"', '""')}"`;
  return csv([`case,${found[0].columns.join(",")}`, ...found.flatMap(({ name, lines }) => lines.map((line) => `${quoted(name)},${line}`))]);
}

/** Send a mask that a person corrected, and show it in place of the model's. */
async function correct(file) {
  $("corrected").className = "";
  try {
    const body = new Blob([file], { type: "application/octet-stream" });
    const correction = await (await request(`/jobs/${state.job.id}/corrected-mask`, { method: "POST", body })).json();
    state.answer.correction = correction;
    if (state.shown) state.shown.answer.correction = correction; // it is seen again when the case is
    drawCorrection();
    if ($("viewer").hidden) await showPicture();
    else await viewer.lay(file, state.labels, $("opacity").value / 100);
  } catch (error) {
    $("corrected").className = "failure";
    $("corrected").replaceChildren(error.status === 400 ? t("segment.correct_no") : explain(error), " ", h("span", { lang: "en" }, error.message));
  }
}

function drawCorrection() {
  const { correction, task, parts, labels } = state.answer;
  const isWhite = parts.includes("mask.png") && labels.length === 2; // of several structures it holds ids
  $("correct-how").textContent = isWhite ? t("segment.correct_png") : wording(task, "correct_how");
  $("get-pairs").hidden = !correction;
  $("corrected").className = "";
  $("corrected").textContent = correction ? wording(task, "corrected", { n: count(correction.voxels_changed), by: correction.corrected_by }) : "";
}

$("choose-mask").addEventListener("click", () => $("corrected-mask").click());
$("corrected-mask").addEventListener("change", (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  if (file) inTurn(() => correct(file));
});
$("cases-csv").addEventListener("click", () => save(allMeasures(), "medserve-measures.csv"));
$("cases-zip").addEventListener("click", async () => {
  try {
    const names = titles(state.cases);
    const bytesOf = async (blob) => new Uint8Array(await blob.arrayBuffer());
    const files = [{ name: "medserve-masks/measures.csv", bytes: await bytesOf(allMeasures()) }];
    for (const [place, { answer, job }] of state.cases.entries()) {
      const part = answer && ["mask.png", "mask.nii.gz"].find((each) => answer.parts.includes(each));
      if (!part) continue;
      const mask = await (await request(`/jobs/${job.id}/${part}`)).blob();
      files.push({ name: `medserve-masks/${names[place]}-${part}`, bytes: await bytesOf(mask) });
    }
    save(zipped(files), "medserve-masks.zip");
  } catch (error) {
    fail(error);
  }
});
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if ($("rerun").hidden) return; // there is nothing yet; the options count for the next file
  state.stopping?.abort();
  state.stopping = new AbortController();
  fail(null);
  $("progress").hidden = false;
  rerun(state.stopping.signal).catch(fail);
});
$("delete").addEventListener("click", async () => {
  if (!(await agreed($("confirm")))) return;
  state.stopping?.abort();
  await deleteJobs(state.jobs).then(() => location.assign("/segment"), fail);
});

/** Show what the job of this address has, unless files came before that. */
async function restore(id) {
  $("drop").classList.add("small");
  const { answer, files } = await (await request(`/jobs/${id}`)).json();
  if (state.job.id !== id || state.cases.length) return;
  $("rerun").hidden = files.length === 0;
  if (answer) await show(answer);
}

if (state.job) inTurn(() => restore(page.job.id)).catch(fail);
