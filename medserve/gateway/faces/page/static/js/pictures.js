// Thumbnails: from the visitor's own file where the browser can show it, else from the server.

import { h } from "./dom.js";

const BY_BROWSER = new Set(["image/png", "image/jpeg"]);

/** What stands where there is nothing to see; a screen reader passes over it. */
export const dash = () => h("span", { "aria-hidden": "true" }, "–");

/** An image of a row's file, or null where there is none yet. `large` for a closer look. */
export function picture(row, job, large = false) {
  const own = row.file && BY_BROWSER.has(row.file.type);
  const onServer = row.stored && row.status !== "error" && job;
  if (!own && !onServer) return null;
  const source = own ? URL.createObjectURL(row.file) : `/jobs/${job}/files/${row.number}/thumbnail${large ? "?side=large" : ""}`;
  const image = h("img", { src: source, alt: "", decoding: "async" });
  const gone = () => own && URL.revokeObjectURL(source);
  image.addEventListener("load", gone, { once: true });
  image.addEventListener("error", () => {
    gone();
    image.replaceWith(dash());
  }, { once: true });
  return image;
}
