// One frame with its mask, put together here so that a structure can be hidden and coloured.

const FAINT = 0.4; // of the opacity inside a structure, whose line is drawn in full
const LINE = 400; // pixels of the shorter side for each pixel of the line's width

export class FlatPicture {
  /** The frame and the mask of a job, as pixels. */
  static async load(job) {
    const [frame, mask] = await Promise.all(["frame.png", "mask.png"].map(async (part) => {
      const image = new Image();
      image.src = `/jobs/${job}/${part}?at=${Date.now()}`;
      await image.decode();
      return pixelsOf(image);
    }));
    return new FlatPicture(frame, mask);
  }

  constructor(frame, mask) {
    Object.assign(this, { frame, inside: inside(mask) });
    this.line = rim(this.inside, mask.width, mask.height);
  }

  /** A picture (data URL) in these colours; `labels` are [{colour: "#rrggbb", shown}], the background first. */
  draw(labels, opacity) {
    const { width, height, data } = this.frame;
    const pixels = new Uint8ClampedArray(data);
    const { colour, shown } = labels[1];
    const tint = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    for (let at = 0; shown && at < this.inside.length; at += 1) {
      if (!this.inside[at]) continue;
      const weight = opacity * (this.line[at] ? 1 : FAINT);
      for (let part = 0; part < 3; part += 1) pixels[4 * at + part] += (tint[part] - pixels[4 * at + part]) * weight;
    }
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

const inside = ({ data }) => Uint8Array.from({ length: data.length / 4 }, (_, at) => (data[4 * at] > 0 ? 1 : 0));

/** Pixels of a structure beside one that is none, as many deep as the line is wide. */
function rim(kept, width, height) {
  let core = kept;
  for (let depth = Math.max(1, Math.round(Math.min(width, height) / LINE)); depth > 0; depth -= 1) {
    const before = core;
    const at = (x, y) => before[Math.min(Math.max(y, 0), height - 1) * width + Math.min(Math.max(x, 0), width - 1)];
    core = before.map((is, place) => {
      const x = place % width;
      const y = Math.floor(place / width);
      return is && at(x - 1, y) && at(x + 1, y) && at(x, y - 1) && at(x, y + 1);
    });
  }
  return kept.map((is, at) => (is && !core[at] ? 1 : 0));
}
