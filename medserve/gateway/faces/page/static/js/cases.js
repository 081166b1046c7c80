// Several cases given at once: which files belong together, and their list with what came of each.

import { $, h } from "./dom.js";

const WHOLE = /\.(nii|nii\.gz|npy|zip|png|jpe?g|tiff?)$/i; // such a file is a case by itself

/** Sort [{name, file}] into cases [{name, files}]; of volumes, the other files of a folder are a series. */
export function casesOf(found, task) {
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
