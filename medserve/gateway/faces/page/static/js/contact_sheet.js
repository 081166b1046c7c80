// One picture of many, for a report; what is synthetic says so in the pixels themselves.

const MARK = "SYNTHETIC"; // in every language: the picture leaves this page
const SIDE = 224;
const GAP = 14;
const CAPTION = 24;
const HEAD = 52;

/** A PNG of pictures ([{image, seed}]) under a title, each with the mark across its corner. */
export async function contactSheet(made, title) {
  const columns = Math.min(made.length, Math.max(2, Math.ceil(Math.sqrt(made.length))));
  const canvas = document.createElement("canvas");
  canvas.width = GAP + columns * (SIDE + GAP);
  canvas.height = HEAD + Math.ceil(made.length / columns) * (SIDE + CAPTION + GAP);
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#ffffff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = "#17212b";
  pen.font = "600 16px system-ui, sans-serif";
  pen.fillText(`${MARK} · ${title}`, GAP, 32, canvas.width - 2 * GAP);
  pen.imageSmoothingEnabled = false;
  made.forEach(({ image, seed }, place) => {
    const left = GAP + (place % columns) * (SIDE + GAP);
    const top = HEAD + Math.floor(place / columns) * (SIDE + CAPTION + GAP);
    const scale = SIDE / Math.max(image.naturalWidth, image.naturalHeight);
    const wide = image.naturalWidth * scale;
    const high = image.naturalHeight * scale;
    pen.fillStyle = "#000000";
    pen.fillRect(left, top, SIDE, SIDE);
    pen.drawImage(image, left + (SIDE - wide) / 2, top + (SIDE - high) / 2, wide, high);
    pen.font = "700 12px system-ui, sans-serif";
    pen.fillStyle = "rgb(0 0 0 / 72%)";
    pen.fillRect(left + 6, top + SIDE - 24, pen.measureText(MARK).width + 12, 18);
    pen.fillStyle = "#ffd479";
    pen.fillText(MARK, left + 12, top + SIDE - 11);
    pen.fillStyle = "#52606d";
    pen.font = "13px system-ui, sans-serif";
    pen.fillText(String(seed), left, top + SIDE + 17);
  });
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
