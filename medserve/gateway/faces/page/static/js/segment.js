// The page that segments a volume: files in, a viewer with the mask, measures, downloads.

import { $, agreed, h, save } from "./dom.js";
import { onFiles } from "./dropping.js";
import { bytes, count, decimal, explain, page, t } from "./page.js";
import { request, sendPack, ServerError } from "./server.js";
import { Viewer } from "./viewer.js";

const AXES = ["x", "y", "z"];
const NIFTI = /\.nii(\.gz)?$/i;

const state = { job: page.job, labels: [], answer: null, stopping: null, volume: null };
const viewer = new Viewer($("viewer"), moved);

// ---- from files to an answer

async function take(found) {
  state.stopping?.abort();
  const stopping = (state.stopping = new AbortController());
  const { signal } = stopping;
  fail(null);
  try {
    const size = found.reduce((sum, { file }) => sum + file.size, 0);
    if (size > page.limits.bytes) throw new ServerError(413, "PAYLOAD_TOO_LARGE", "");
    await begin();
    signal.throwIfAborted();
    state.volume = found.length === 1 && NIFTI.test(found[0].name) ? found[0].file : null;
    const entries = found.map(({ name, file }, number) => ({ number, name, file }));
    run(t("segment.sending", { size: bytes(size) }), 0);
    await sendPack(`/jobs/${state.job.id}/volume`, entries, { progress: (part) => ($("progress").value = part), signal });
    await ask({}, signal);
  } catch (error) {
    if (stopping === state.stopping) fail(error);
  }
}

/** Each volume is a job of its own. */
async function begin() {
  const [model, version] = $("model").value.split("@");
  const response = await request("/jobs", { method: "POST", json: { kind: "segment", model, version } });
  state.job = await response.json();
  history.replaceState(null, "", `/segment/${state.job.id}`);
}

async function ask(options, signal) {
  const begun = performance.now();
  const tick = () => run(t("segment.working", { seconds: count(Math.round((performance.now() - begun) / 1000)) }), null);
  tick();
  const timer = setInterval(tick, 1000);
  let response;
  try {
    response = await request(`/jobs/${state.job.id}/segmentation`, { method: "POST", json: options, signal });
  } finally {
    clearInterval(timer);
  }
  await show(await response.json());
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

/** Of frames whose lengths nobody states there are pixels, and no millilitres. */
function measured({ measures, frames, labels }) {
  if (measures.length || !frames) return measures;
  const good = frames.filter(({ status }) => status === "ok");
  const voxels = good.reduce((sum, { pixels }) => sum + pixels, 0);
  const touches_border = good.some((frame) => frame.touches_border);
  return [{ label: labels[1], label_id: 1, voxels, volume_ml: null, centroid_mm: null, touches_border }];
}

async function show(answer) {
  state.answer = { ...answer, measures: measured(answer) };
  state.labels = answer.labels.map((name, place) => ({ name, colour: answer.colours[place], shown: true }));
  $("work").hidden = false;
  drawMeasures();
  drawFacts();
  drawDownloads();
  if (answer.parts.includes("mask.nii.gz") && Viewer.available && !answer.flat) await showVolume();
  else showPicture();
  $("stop").hidden = true;
  $("progress").hidden = true;
  $("said").textContent = t("segment.done", { found: count(state.answer.measures.filter(({ voxels }) => voxels).length) });
}

async function showVolume() {
  for (const id of ["viewer", "viewer-tools", "sliders", "place"]) $(id).hidden = false;
  $("overlay").hidden = true;
  run(t("segment.drawing"), null);
  const { id } = state.job;
  const volume = state.volume ?? (await (await request(`/jobs/${id}/volume`)).blob());
  const mask = await (await request(`/jobs/${id}/mask.nii.gz`)).blob();
  await viewer.show(volume);
  await viewer.lay(mask, state.labels, $("opacity").value / 100);
  viewer.view = document.querySelector("[name=view]:checked").value;
  const largest = [...state.answer.measures].filter(({ centroid_mm }) => centroid_mm).sort((a, b) => b.voxels - a.voxels)[0];
  if (largest) viewer.go(largest.centroid_mm);
  $("viewer").dataset.ready = "yes";
}

/** A flat image, or a browser without WebGL: the picture that the model drew. */
function showPicture() {
  for (const id of ["viewer", "viewer-tools", "sliders", "place"]) $(id).hidden = true;
  $("overlay").hidden = !state.answer.parts.includes("overlay.png");
  if (!$("overlay").hidden) $("overlay").src = `/jobs/${state.job.id}/overlay.png?at=${Date.now()}`;
  if (state.answer.flat || Viewer.available || !state.answer.parts.includes("mask.nii.gz")) return;
  $("warnings").hidden = false;
  $("warnings").textContent = t("segment.no_viewer");
}

function drawMeasures() {
  $("measures").replaceChildren(...state.answer.measures.map((measure) => {
    const label = state.labels[measure.label_id];
    const repaint = (change) => {
      Object.assign(label, change);
      viewer.paint(state.labels);
    };
    const named = { label: measure.label };
    return h("tr", {},
      h("td", {}, h("span", { className: "swatch" },
        h("input", { type: "checkbox", checked: true, "aria-label": t("segment.show_label", named), onchange: (event) => repaint({ shown: event.target.checked }) }),
        h("input", { type: "color", value: label.colour, "aria-label": t("segment.colour_of", named), oninput: (event) => repaint({ colour: event.target.value }) }))),
      h("td", {}, measure.label),
      h("td", { className: "number" }, millilitres(measure.volume_ml)),
      h("td", { className: "number" }, count(measure.voxels)));
  }));
  const cut = state.answer.measures.filter(({ touches_border }) => touches_border).map(({ label }) => label);
  const unlike = (state.answer.frames ?? []).filter(({ unlike_ultrasound }) => unlike_ultrasound).length;
  const failed = (state.answer.frames ?? []).filter(({ status }) => status !== "ok").length;
  const said = [
    cut.length && t("segment.at_border", { labels: cut.join(", ") }),
    unlike && t("segment.unlike", { frames: count(unlike) }),
    failed && t("segment.failed_frames", { frames: count(failed) }),
  ].filter(Boolean);
  $("warnings").hidden = said.length === 0;
  $("warnings").textContent = said.join(" ");
}

function millilitres(volume) {
  return volume === null ? "–" : decimal(volume, volume < 10 ? 3 : 1);
}

/** What was measured of frames: nothing stands where nobody states the lengths. */
function frameFacts({ stack, grid }) {
  if (!stack) return [];
  const sides = [stack.width_mm, stack.height_mm, stack.length_mm];
  const facts = [[t("segment.frames_found"), `${count(stack.frames_found)} / ${count(grid.frames)}`]];
  if (stack.area_cm2 !== null) facts.push([t("segment.area"), `${decimal(stack.area_cm2, 2)} cm²`]);
  if (stack.width_mm !== null) facts.push([t("segment.diameters"), `${sides.map((mm) => (mm === null ? "–" : decimal(mm, 1))).join(" × ")} mm`]);
  if (stack.ellipsoid_ml !== null) facts.push([t("segment.ellipsoid"), `${millilitres(stack.ellipsoid_ml)} ml`]);
  return facts;
}

function drawFacts() {
  const { model, version, archive_digest, shape, grid } = state.answer;
  const spacing_mm = grid && !grid.spacing_mm ? null : state.answer.spacing_mm;
  const facts = [
    [t("common.model"), `${model} ${version}`],
    [t("segment.shape"), shape ? shape.join(" × ") : "–"],
    [t("segment.spacing"), spacing_mm ? `${spacing_mm.map((x) => decimal(x, 2)).join(" × ")} mm` : "–"],
    ...frameFacts(state.answer),
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
  offer("get-nifti", "mask.nii.gz", parts.includes("mask.nii.gz"));
  offer("get-overlay", "overlay.png", parts.includes("overlay.png"));
  offer("get-seg", "mask.dcm", state.answer.dicom);
}

function moved({ mm, value, label }) {
  const at = viewer.position;
  AXES.forEach((axis, place) => ($(`cross-${axis}`).value = Math.round(at[place] * 1000)));
  const values = { place: mm.map((x) => decimal(x, 1)).join(" / "), value: value === undefined ? "–" : decimal(value, 1) };
  $("place").textContent = t("segment.place", values) + (label ? ` · ${label}` : "");
}

// ---- what the visitor does

$("formats").textContent = t("segment.formats");
onFiles(take);
$("stop").addEventListener("click", () => state.stopping?.abort());
$("opacity").addEventListener("input", (event) => (viewer.opacity = event.target.value / 100));
for (const choice of document.querySelectorAll("[name=view]")) {
  choice.addEventListener("change", (event) => (viewer.view = event.target.value));
}
for (const axis of AXES) {
  $(`cross-${axis}`).addEventListener("input", () => (viewer.position = AXES.map((each) => $(`cross-${each}`).value / 1000)));
}
$("get-csv").addEventListener("click", () => {
  const rows = state.answer.measures.map(({ label, label_id, voxels, volume_ml }) => [label, label_id, voxels, volume_ml].join(","));
  save(new Blob([["label,label_id,voxels,volume_ml", ...rows, ""].join("\r\n")], { type: "text/csv" }), "medserve-measures.csv");
});
$("options").addEventListener("submit", (event) => {
  event.preventDefault();
  const chosen = Object.fromEntries([...event.target.elements].filter(({ name }) => name).map(({ name, checked }) => [name, checked]));
  state.stopping = new AbortController();
  fail(null);
  $("progress").hidden = false;
  ask(chosen, state.stopping.signal).catch(fail);
});
$("delete").addEventListener("click", async () => {
  if (!(await agreed($("confirm")))) return;
  await request(`/jobs/${state.job.id}`, { method: "DELETE" }).catch(fail);
  location.assign("/segment");
});

if (state.job) {
  $("model").value = `${state.job.model}@${state.job.version}`;
  $("drop").classList.add("small");
  request(`/jobs/${state.job.id}`)
    .then((response) => response.json())
    .then(({ answer }) => answer && show(answer))
    .catch(fail);
}
