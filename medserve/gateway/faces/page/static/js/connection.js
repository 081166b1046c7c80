// Whether the server can be reached: looked at all the time, said on every page.

const EVERY_MS = 1500;
const PATIENCE_MS = 3000; // a busy server answers later than a missing one

const banner = document.getElementById("lost");
const waiting = new Set();

/** Whether the server answers now; the page says so where it does not. */
export async function reachable() {
  let there = true;
  try {
    await fetch("/alive", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  } catch {
    there = false;
  }
  banner.hidden = there;
  if (there) {
    for (const go of waiting) go();
    waiting.clear();
  }
  return there;
}

/** Wait until the server answers again, or the signal says to stop. */
export function untilReachable(signal) {
  return new Promise((resolve) => {
    waiting.add(resolve);
    signal.addEventListener("abort", resolve, { once: true });
    reachable();
  });
}

async function watch() {
  if (!document.hidden) await reachable();
  setTimeout(watch, EVERY_MS);
}

if (banner) {
  addEventListener("offline", reachable);
  addEventListener("online", reachable);
  watch();
}
