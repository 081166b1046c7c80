// A picture with its labels, put together here so that a structure can be hidden and coloured.

import { request } from "./server.js";

const FAINT = 0.4; // of the opacity inside a structure, whose line is drawn in full
const LINE = 400; // pixels of the shorter side for each pixel of the line's width

/** One frame, or a sheet of slices or frames. */
export class FlatPicture {
  /** The picture of a job and the label ids of its pixels. */
  static async load(job) {
    const found = await (await request(`/jobs/${job}/layers`)).json();
    const [picture, labels] = await Promise.all([found.picture_png, found.labels_png].map(async (png) => {
      const image = new Image();
      image.src = `data:image/png;base64,${png}`;
      await image.decode();
      return pixelsOf(image);
    }));
    return new FlatPicture(picture, labels);
  }

  constructor(picture, { data, width, height }) {
    this.picture = picture;
    this.ids = Uint8Array.from({ length: data.length / 4 }, (_, at) => data[4 * at]);
    this.line = rim(this.ids, width, height);
  }

  /** A picture (data URL) in these colours; `labels` are [{colour: "#rrggbb", shown}], the background first. */
  draw(labels, opacity) {
    const { width, height, data } = this.picture;
    const pixels = new Uint8ClampedArray(data);
    const tints = labels.map(({ colour }) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)));
    this.ids.forEach((id, at) => {
      if (!id || !labels[id]?.shown) return;
      const weight = opacity * (this.line[at] ? 1 : FAINT);
      for (let part = 0; part < 3; part += 1) pixels[4 * at + part] += (tints[id][part] - pixels[4 * at + part]) * weight;
    });
    const canvas = canvasOf(width, height);
    canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
    return canvas.toDataURL();
  }
}

function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  return Object.assign(canvas, { width, height });
}

function pixelsOf(image) {
  const { naturalWidth: width, naturalHeight: height } = image;
  const pen = canvasOf(width, height).getContext("2d");
  pen.drawImage(image, 0, 0);
  return pen.getImageData(0, 0, width, height);
}

/** Pixels of a structure beside one that is none of it, as many deep as the line is wide. */
function rim(ids, width, height) {
  let core = ids;
  for (let depth = Math.max(1, Math.round(Math.min(width, height) / LINE)); depth > 0; depth -= 1) {
    const before = core;
    const at = (x, y) => before[Math.min(Math.max(y, 0), height - 1) * width + Math.min(Math.max(x, 0), width - 1)];
    core = before.map((id, place) => {
      const x = place % width;
      const y = Math.floor(place / width);
      const within = at(x - 1, y) === id && at(x + 1, y) === id && at(x, y - 1) === id && at(x, y + 1) === id;
      return within ? id : 0;
    });
  }
  return ids.map((id, at) => (id && !core[at] ? 1 : 0));
}
