// The form of a model's options, made from what its task declares.

import { h } from "./dom.js";
import { t } from "./page.js";

/** Show a control for each option; `first` has values to start with, by the options' names. */
export function offerOptions(box, options, first = {}) {
  box.replaceChildren(...options.map((option) => field(option, first[option.name] ?? option.default)));
}

/** What the visitor chose, by the options' names; what is left open is not there. */
export function chosenOptions(box, options) {
  const chosen = {};
  for (const option of options) {
    const control = box.querySelector(`[name="${option.name}"]`);
    if (control.type === "checkbox") {
      if (control.checked !== option.default) chosen[option.name] = control.checked;
    } else if (control.value.trim()) {
      chosen[option.name] = valueOf(option, control.value.trim());
    }
  }
  return chosen;
}

function valueOf({ type, count }, text) {
  if (type === "bool") return text === "true";
  return type === "str" || count > 1 ? text : Number(text); // several numbers travel as one text
}

function field(option, value) {
  const id = `option-${option.name}`;
  const control = controlOf(option, value ?? null);
  control.id = id;
  control.name = option.name;
  control.setAttribute("aria-describedby", `${id}-help`);
  const label = h("label", { for: id }, option.label);
  const help = h("small", { id: `${id}-help`, className: "muted" }, option.help);
  const inside = control.type === "checkbox" ? [h("span", { className: "switch" }, control, label)] : [label, control];
  return h("div", { className: "option" }, ...inside, help);
}

function controlOf(option, value) {
  const { type, count, choices, least, most, above, default: standard } = option;
  const open = standard === null ? [["", t("options.model")]] : [];
  if (type === "bool" && standard !== null) return h("input", { type: "checkbox", checked: value });
  if (type === "bool") return choice([...open, ["true", t("options.yes")], ["false", t("options.no")]], value);
  if (choices.length) return choice([...open, ...choices.map((word) => [word, word])], value);
  if (count > 1 || type === "str") {
    const shown = Array.isArray(value) ? value.join(", ") : (value ?? "");
    return h("input", { type: "text", value: String(shown), placeholder: t("options.model"), autocomplete: "off" });
  }
  return h("input", {
    type: "number", value: String(value ?? ""), placeholder: t("options.model"),
    min: text(least ?? above), max: text(most), step: type === "int" ? "1" : "any", required: standard !== null,
  });
}

function choice(words, value) {
  const select = h("select", {}, ...words.map(([word, shown]) => h("option", { value: word }, shown)));
  select.value = String(value ?? "");
  return select;
}

function text(number) {
  return number === null || number === undefined ? null : String(number);
}
