// Which model a page starts with: its job's, the one that its address names, the one chosen last.

import { $, remember, remembered } from "./dom.js";
import { page, t } from "./page.js";

/** Select that model, remember later choices, and say in `failure` where the named one is missing. */
export function startModel(kind, changed) {
  const select = $("model");
  const key = `medserve.model.${kind}`;
  const named = new URLSearchParams(location.search).get("model");
  const wishes = page.job ? [`${page.job.model}@${page.job.version}`] : [named, remembered(key)];
  const found = wishes.map((wish) => find(wish)).find(Boolean);
  if (found) select.value = valueOf(found);
  if (!page.job && named && !find(named)) {
    $("failure").hidden = false;
    $("failure").textContent = t("common.no_model", { name: named });
  }
  select.addEventListener("change", () => {
    remember(key, select.value);
    changed();
  });
}

/** NAME@VERSION of a model. */
export const valueOf = ({ name, version }) => `${name}@${version}`;

/** The chosen model. */
export const chosen = () => find($("model").value);

/** The model of NAME or NAME@VERSION; of a bare name the default version. */
function find(wish) {
  return page.models.find((model) => valueOf(model) === wish || (model.name === wish && model.default));
}
