// The page that generates pictures: they appear while they form, each marked as synthetic.

import { contactSheet } from "./contact_sheet.js";
import { chosen, startModel } from "./choosing.js";
import { $, h, save } from "./dom.js";
import { chosenOptions, offerOptions } from "./options.js";
import { count, explain, t } from "./page.js";
import { request, ServerError } from "./server.js";
import { zipped } from "./zip.js";

const FIRST = { n: 8 }; // a gallery to begin with

const state = { stopping: null, tiles: [], settings: null, made: [], files: [] };

// ---- a run

async function draw(settings) {
  state.stopping = new AbortController();
  Object.assign(state, { settings, made: [], files: [], tiles: Array.from({ length: settings.n ?? 1 }, makeTile) });
  $("files").replaceChildren();
  $("gallery").replaceChildren(...state.tiles.map(({ element }) => element));
  running(true);
  fail(null);
  try {
    const response = await request("/samples", { method: "POST", json: settings, signal: state.stopping.signal });
    for await (const event of lines(response.body)) hear(event);
    say(t("generate.done", { n: count(state.made.filter(Boolean).length) }));
  } catch (error) {
    if (error.name !== "AbortError") fail(error);
    say(error.name === "AbortError" ? t("generate.stopped") : "");
  } finally {
    running(false);
  }
}

async function* lines(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
}

function hear(event) {
  if (event.event === "error") throw new ServerError(500, event.error.code, event.error.message);
  if (event.event === "file") return keep(event);
  const tile = state.tiles[event.image];
  if (!tile) return;
  if (event.png) {
    tile.image.src = `data:image/png;base64,${event.png}`;
    tile.image.hidden = false;
  }
  if (event.event === "progress") {
    tile.progress.max = event.of;
    tile.progress.value = event.step;
  } else {
    tile.progress.hidden = true;
    tile.image.alt = t("generate.alt", { n: count(event.image + 1), seed: event.seed });
    tile.caption.textContent = t("generate.seed_of", { seed: event.seed });
    const made = { image: tile.image, seed: event.seed, bytes: decoded(event.png) };
    state.made[event.image] = made;
    offer(event.image, "png", made.bytes, fileName("png", event.seed));
  }
  const parts = state.tiles.map(({ progress }) => (progress.hidden ? 1 : progress.value / progress.max || 0));
  $("progress").value = parts.reduce((sum, part) => sum + part, 0) / parts.length;
  const ready = state.made.filter(Boolean).length;
  say(t("generate.running", { done: count(ready), all: count(state.tiles.length) }));
}

/** Offer a file of all images beside them, or of one image below it. */
function keep({ image, suffix, content }) {
  const seed = image === null ? null : state.made[image].seed;
  offer(image, suffix, decoded(content), fileName(suffix, seed));
}

const decoded = (content) => Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));

const fileName = (suffix, seed = null) => `medserve-synthetic${seed === null ? "" : `-${seed}`}.${suffix}`;

function offer(image, suffix, bytes, name) {
  if (image !== null) state.files.push({ name, bytes });
  const label = image === null ? name : t("generate.file_of", { n: count(image + 1), suffix });
  const button = h("button", { type: "button", "aria-label": label, onclick: () => save(new Blob([bytes]), name) }, suffix);
  if (image === null) $("files").append(button);
  else state.tiles[image].caption.after(button);
}

function makeTile(_, place) {
  const image = h("img", { alt: "", hidden: true });
  const progress = h("progress", { value: 0, max: 1, "aria-label": t("generate.progress_of", { n: count(place + 1) }) });
  const caption = h("span", {}, "…");
  const element = h("li", {}, h("figure", {},
    h("div", { className: "frame-square" }, image, h("span", { className: "synthetic" }, t("generate.synthetic")), progress),
    h("figcaption", {}, h("span", {}, count(place + 1)), caption)));
  return { element, image, progress, caption };
}

function running(yes) {
  $("draw").disabled = yes;
  $("stop").hidden = !yes;
  $("progress").hidden = !yes;
  if (yes) $("progress").value = 0;
  $("zip").hidden = yes || !state.files.length;
  $("sheet").hidden = yes || !state.made.some(Boolean);
  if (yes) say(t("generate.waiting"));
}

function say(text) {
  if ($("said").textContent !== text) $("said").textContent = text;
}

function fail(error) {
  $("failure").hidden = error === null;
  if (error) $("failure").replaceChildren(explain(error), " ", h("span", { lang: "en" }, error.message));
}

// ---- what the visitor does

function offerForm() {
  offerOptions($("options"), chosen().options, FIRST);
  const seed = $("option-seed");
  const dice = () => (seed.value = crypto.getRandomValues(new Uint32Array(1))[0]);
  const row = h("span", { className: "row" });
  seed.replaceWith(row);
  row.append(seed, h("button", { type: "button", id: "dice", onclick: dice }, t("generate.dice")));
  dice();
}

startModel("generate", offerForm);
offerForm();
$("stop").addEventListener("click", () => state.stopping.abort());
$("settings").addEventListener("submit", (event) => {
  event.preventDefault();
  const { name: model, version, options } = chosen();
  draw({ model, version, ...chosenOptions($("options"), options) });
});
$("zip").addEventListener("click", () => {
  const files = state.files.map(({ name, bytes }) => ({ name: `medserve-synthetic/${name}`, bytes }));
  save(zipped(files), fileName("zip"));
});
$("sheet").addEventListener("click", async () => {
  const title = [state.settings.model, state.settings.version, state.settings.class, state.settings.steps && t("generate.steps_of", { steps: state.settings.steps })];
  save(await contactSheet(state.made.filter(Boolean), title.filter(Boolean).join(" · ")), "medserve-synthetic.png");
});
