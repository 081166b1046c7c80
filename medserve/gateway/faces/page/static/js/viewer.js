// A volume with its mask, drawn by NiiVue, which is fetched only when there is something to draw.

import { page } from "./page.js";

/** Shows one volume and, above it, one mask. */
export class Viewer {
  /** `moved({mm, vox, value, label})` hears where the crosshair is. */
  constructor(canvas, moved) {
    this.canvas = canvas;
    this.moved = moved;
    this.mask = null;
    this.map = null;
  }

  /** Whether the drawing code was installed with the server and this browser can run it. */
  static get available() {
    return page.viewer !== null && document.createElement("canvas").getContext("webgl2") !== null;
  }

  /** Show a volume (a Blob of NIfTI), without a mask. */
  async show(volume) {
    await this.#start();
    for (const old of [...this.nv.volumes].reverse()) this.nv.removeVolume(old);
    this.mask = null;
    this.map = null;
    this.nv.addVolume(await this.#image(volume, "volume", { colormap: "gray", opacity: 1 }));
    this.nv.scene.crosshairPos = [0.5, 0.5, 0.5];
    this.nv.updateGLVolume();
  }

  /** Lay a mask over it; `labels` are [{name, colour: "#rrggbb", shown}], the background first. */
  async lay(mask, labels, opacity) {
    if (this.mask) this.nv.removeVolume(this.mask);
    this.mask = await this.#image(mask, "mask", { colormap: "gray", opacity });
    this.labels = labels;
    this.mask.setColormapLabel(lookup(labels));
    this.nv.addVolume(this.mask);
    this.nv.updateGLVolume();
  }

  /** Lay a map (a Blob of NIfTI from 0 to 1) over all, brighter where it is higher; null takes it away. */
  async veil(map) {
    if (this.map) this.nv.removeVolume(this.map);
    this.map = map && (await this.#image(map, "map", { colormap: "inferno", opacity: 0.6, cal_min: 0.05, cal_max: 1 }));
    if (this.map) this.nv.addVolume(this.map);
    this.nv.updateGLVolume();
  }

  /** Move the crosshair to a place of the world (RAS+ mm). */
  go(mm) {
    this.position = [...this.nv.mm2frac(mm)];
  }

  /** Other colours, or labels shown and hidden. */
  paint(labels) {
    this.labels = labels;
    this.mask?.setColormapLabel(lookup(labels));
    this.nv?.updateGLVolume();
  }

  set opacity(value) {
    if (this.mask) this.nv.setOpacity(this.nv.volumes.indexOf(this.mask), value);
  }

  /** "multi", "axial", "coronal", "sagittal" or "render". */
  set view(name) {
    this.nv?.setSliceType({ multi: 3, axial: 0, coronal: 1, sagittal: 2, render: 4 }[name]);
  }

  /** How many voxels the volume has along x, y, z of the body. */
  get shape() {
    return this.nv.volumes[0].dimsRAS.slice(1, 4);
  }

  /** Where the crosshair is: fractions of the volume along x, y, z. */
  get position() {
    return [...this.nv.scene.crosshairPos];
  }

  set position(fractions) {
    this.nv.scene.crosshairPos = fractions;
    this.nv.drawScene();
    this.nv.createOnLocationChange();
  }

  async #start() {
    if (this.nv) return;
    const { Niivue, MULTIPLANAR_TYPE, SHOW_RENDER } = await import(page.viewer);
    this.nv = new Niivue({
      isRadiologicalConvention: true, // the patient's right is on the left, as on a light box
      multiplanarLayout: MULTIPLANAR_TYPE.GRID,
      // Without a graphics processor the third dimension takes seconds a picture: only on demand.
      multiplanarShowRender: drawnBySoftware() ? SHOW_RENDER.NEVER : SHOW_RENDER.ALWAYS,
      backColor: [0, 0, 0, 1],
      crosshairColor: [0.35, 0.77, 0.8, 0.8],
      crosshairWidth: 0.4,
      crosshairGap: 4,
      fontColor: [1, 1, 1, 1],
      fontMinPx: 15,
      dragAndDropEnabled: false, // the page takes files, so that they also reach the model
      showLegend: false,
      isAntiAlias: false,
      logLevel: "error",
      loadingText: "",
    });
    rimmed(this.nv);
    this.nv.onLocationChange = (place) => this.moved(this.#described(place));
    await this.nv.attachToCanvas(this.canvas, false);
  }

  #described({ mm, vox, values }) {
    const [volume, mask] = values;
    const label = mask ? this.labels?.[Math.round(mask.value)] : null;
    return { mm: [...mm].slice(0, 3), vox: [...vox].slice(0, 3), value: volume?.value, label: mask && mask.value > 0 ? label?.name : null };
  }

  async #image(blob, name, look) {
    const { NVImage } = await import(page.viewer);
    const start = new Uint8Array(await blob.slice(0, 2).arrayBuffer());
    const packed = start[0] === 0x1f && start[1] === 0x8b;
    return NVImage.loadFromFile({ file: new File([blob], `${name}.nii${packed ? ".gz" : ""}`), ...look });
  }
}

/** Write letters with a dark rim: the tissue below them may be as bright as they are. */
function rimmed(nv) {
  const write = nv.drawText.bind(nv);
  const steps = [-1.5, 0, 1.5].map((pixels) => pixels * devicePixelRatio);
  nv.drawText = ([x, y], text, scale, color) => {
    for (const right of steps) for (const down of steps) write([x + right, y + down], text, scale, [0, 0, 0, 1]);
    write([x, y], text, scale, color);
  };
}

/** Whether WebGL is emulated by the processor. */
function drawnBySoftware() {
  const gl = document.createElement("canvas").getContext("webgl2");
  const known = gl.getExtension("WEBGL_debug_renderer_info");
  return known !== null && /swiftshader|llvmpipe|software|basic render/i.test(gl.getParameter(known.UNMASKED_RENDERER_WEBGL));
}

/** The colours as NiiVue takes them. */
function lookup(labels) {
  const channel = (place) => labels.map(({ colour }) => parseInt(colour.slice(1 + 2 * place, 3 + 2 * place), 16));
  return {
    R: channel(0), G: channel(1), B: channel(2),
    A: labels.map(({ shown }, place) => (place > 0 && shown ? 255 : 0)),
    I: labels.map((_, place) => place),
    labels: labels.map(({ name }) => name),
  };
}
