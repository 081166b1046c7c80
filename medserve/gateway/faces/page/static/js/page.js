// What the server tells the script of a page, its texts and numbers in the visitor's language.

const content = JSON.parse(document.getElementById("page").textContent);

export const page = content;
export const language = content.language ?? document.documentElement.lang;

/** The text of a key, with {name} replaced. */
export function t(key, values = {}) {
  const text = content.texts[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));
}

/** Whether there is a text for a key. */
export function has(key) {
  return key in content.texts;
}

const numbers = new Intl.NumberFormat(language);
const percents = new Intl.NumberFormat(language, { style: "percent", minimumFractionDigits: 2, maximumFractionDigits: 2 });

export const count = (n) => numbers.format(n);

/** A probability; nothing short of certainty is rounded up to 100 %. */
export const percent = (p) => percents.format(p < 1 ? Math.floor(p * 1e4) / 1e4 : 1);

/** A number with so many decimals. */
export const decimal = (x, digits) =>
  new Intl.NumberFormat(language, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(x);

/** Bytes as a person reads them. */
export function bytes(n) {
  const units = ["byte", "kilobyte", "megabyte", "gigabyte"];
  let place = 0;
  for (; n >= 1000 && place < units.length - 1; place += 1) n /= 1000;
  const digits = place && n < 10 ? 1 : 0;
  const unitDisplay = place ? "short" : "long"; // the short form of a byte knows no plural
  return new Intl.NumberFormat(language, { style: "unit", unit: units[place], unitDisplay, maximumFractionDigits: digits }).format(n);
}

const NOT_READ = /\.(bmp|gif|webp|heic|heif|avif|svg|pdf|mp4|avi|mov|zip|7z|rar|docx?|xlsx?|txt|csv)$/i;

/** Why a file has no answer, by what is known of its name. */
export function explainFile(name, error) {
  const [, suffix] = (error.code === "INVALID_IMAGE" && NOT_READ.exec(name)) || [];
  return suffix ? t("error.format", { format: suffix.toUpperCase() }) : explain(error);
}

/** What went wrong, in the visitor's language where there are words for it. */
export function explain(error) {
  const key = `error.${error.code}`;
  return has(key) ? t(key) : t("error.other");
}
