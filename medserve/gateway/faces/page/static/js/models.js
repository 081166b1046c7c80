// The state of each model, as it is now, on pages that stay open.

import { t } from "./page.js";
import { request } from "./server.js";

const EVERY_MS = 5000;

async function look() {
  if (document.hidden) return;
  const states = new Map();
  try {
    const { models } = await (await request("/health/models")).json();
    for (const { name, version, ready, reason } of models) states.set(`${name}@${version}`, { ready, reason });
  } catch {
    // nobody answers: no model is ready
  }
  for (const element of document.querySelectorAll("[data-model]")) {
    const { ready = false, reason = "" } = states.get(element.dataset.model) ?? {};
    const mark = element.querySelector("[data-state]");
    mark.className = `state ${ready ? "good" : "bad"}`;
    mark.textContent = t(ready ? "state.ready" : "state.not_ready");
    element.querySelector("[data-reason]").textContent = reason;
  }
}

setInterval(look, EVERY_MS);
