// The description of the REST calls, drawn by Swagger UI from this server's own openapi.json.

// It sets markup that its own DOMPurify has cleaned, as text; no other page allows that.
globalThis.trustedTypes?.createPolicy("default", { createHTML: (markup) => markup });

const dark = matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement;

function paint() {
  root.classList.toggle("dark-mode", root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
}

dark.addEventListener("change", paint);
new MutationObserver(paint).observe(root, { attributeFilter: ["data-theme"] });
paint();

globalThis.SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#api",
  validatorUrl: null, // it would ask another site
  defaultModelsExpandDepth: -1,
  docExpansion: "list",
});
