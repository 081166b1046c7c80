// Several cases given at once: which files belong together, and their list with what came of each.

import { $, h } from "./dom.js";

const WHOLE = /\.(nii|nii\.gz|npy|zip|png|jpe?g|tiff?)$/i; // such a file is a case by itself

const OF_A_CHANNEL = /^(.+)_([0-9]{4})(\.nii|\.nii\.gz|\.nrrd|\.mha|\.mgh|\.mgz|\.npy|\.zip|\.tar|\.tar\.gz|\.tgz)$/i; // nnU-Net's rule

/** Sort [{name, file}] into cases [{name, files}]; of volumes, the other files of a folder are a series. */
export function casesOf(found, { task, channels }) {
  return channels.length ? casesOfChannels(found) : casesOfOne(found, task);
}

/** Files NAME_0000, NAME_0001 and so on are one case, its files in this order and `place` their channel's. */
function casesOfChannels(found) {
  const cases = new Map();
  for (const each of found) {
    const [, name, number] = OF_A_CHANNEL.exec(each.name) ?? [null, each.name, "0"];
    if (!cases.has(name)) cases.set(name, { name, files: [] });
    cases.get(name).files.push({ ...each, place: Number(number) });
  }
  for (const each of cases.values()) {
    each.files.sort((a, b) => a.place - b.place);
    if (each.files.length === 1) Object.assign(each, { name: each.files[0].name, files: [{ ...each.files[0], place: 0 }] });
  }
  return [...cases.values()];
}

function casesOfOne(found, task) {
  const cases = new Map();
  for (const each of found) {
    const whole = task === "frames" || WHOLE.test(each.name);
    const folder = each.name.slice(0, Math.max(0, each.name.lastIndexOf("/")));
    const key = whole ? `file ${cases.size} ${each.name}` : `series ${folder}`;
    if (!cases.has(key)) cases.set(key, { name: whole ? each.name : folder || each.name, files: [] });
    cases.get(key).files.push(each);
  }
  return [...cases.values()];
}

/** The last part of a case's name without its suffix; a number keeps two of one name apart. */
export function titles(cases) {
  const taken = new Map();
  return cases.map(({ name }) => {
    const title = name.split("/").pop().replace(/(\.nii)?\.[a-z]{2,5}$/i, "") || "case";
    const number = (taken.get(title) ?? 0) + 1;
    taken.set(title, number);
    return number === 1 ? title : `${title}-${number}`;
  });
}

/** Draw the list: `said(case)` is what stands behind each name, `open(case)` shows one that is answered. */
export function drawCases(cases, shown, said, open) {
  $("cases").hidden = cases.length < 2;
  if (cases.length < 2) return $("case-list").replaceChildren();
  for (const id of ["cases-zip", "cases-csv"]) $(id).disabled = !cases.some(({ answer }) => answer);
  const focused = document.activeElement?.dataset?.case;
  $("case-list").replaceChildren(...cases.map((each, place) => h("li", {},
    h("button", {
      type: "button", disabled: !each.answer, "data-case": String(place), "aria-current": each === shown ? "true" : null, onclick: () => open(each),
    }, each.name),
    h("span", { className: each.error ? "failure" : "muted" }, said(each)))));
  if (focused) $("case-list").querySelector(`[data-case="${focused}"]`)?.focus();
}
