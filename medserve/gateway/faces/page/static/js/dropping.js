// Files and folders, dropped, pasted or chosen.

import { $ } from "./dom.js";

/** Call `take(files)` with [{name, file}] whenever the visitor gives some; name may have folders. */
export function onFiles(take) {
  const zone = $("drop");
  const give = (found) => found.length && take(found);
  for (const id of ["files", "folder"]) {
    const input = $(id);
    $(`choose-${id}`).addEventListener("click", () => input.click());
    input.addEventListener("change", () => {
      give(visible([...input.files].map((file) => ({ name: file.webkitRelativePath || file.name, file }))));
      input.value = "";
    });
  }
  let depth = 0; // drag events of the children bubble up here
  addEventListener("dragenter", (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    depth += 1;
    zone.classList.add("over");
  });
  addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    if (!depth) zone.classList.remove("over");
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", async (event) => {
    event.preventDefault(); // else the browser leaves the page for the file
    depth = 0;
    zone.classList.remove("over");
    give(visible(await dropped(event.dataTransfer)));
  });
  addEventListener("paste", (event) => {
    give([...event.clipboardData.files].map((file) => ({ name: file.name, file })));
  });
}

/** Without the files that systems hide in folders. */
function visible(found) {
  return found.filter(({ name }) => !name.split("/").some((part) => part.startsWith(".")));
}

async function dropped(transfer) {
  // Entries must be taken now: after the first await the browser has emptied the list.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ name: file.name, file }));
  const found = [];
  for (const entry of entries) await walk(entry, found);
  return found;
}

async function walk(entry, found) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject)).catch(() => null);
    if (file) found.push({ name: entry.fullPath.slice(1), file });
    return;
  }
  const reader = entry.createReader();
  for (;;) { // a reader gives a hundred entries at a time
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)).catch(() => []);
    if (!some.length) return;
    for (const inner of some) await walk(inner, found);
  }
}
