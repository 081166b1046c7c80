// On every page: the switch between light and dark, remembered for a year.

import "./connection.js";

const THEMES = ["", "light", "dark"]; // "" follows the system

const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");

function shown() {
  return root.dataset.theme || (dark.matches ? "dark" : "light");
}

document.getElementById("theme").addEventListener("click", () => {
  const theme = THEMES[shown() === "dark" ? 1 : 2];
  root.dataset.theme = theme;
  document.cookie = `medserve_theme=${theme}; path=/; max-age=31536000; samesite=lax`;
});
