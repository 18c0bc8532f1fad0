// The size: a shape to choose, or sides to type.

const RATIOS = [[1, 1], [4, 3], [3, 4], [16, 9], [9, 16]];

const element = (id) => document.getElementById(id);

export class SizeChoice {
  #sizes = new Map(); // of each preset by its id; null of the one for sides that are typed
  #multiple = 16;
  #goodSides = null;
  #limits = {};
  #picture = null; // the size of pictures that start from one
  #before = null; // what was chosen before there was one

  constructor() {
    element("presets").addEventListener("change", () => this.#changed());
    for (const id of ["width", "height"]) element(id).addEventListener("input", () => this.#note());
  }

  /** Offer sizes that the server takes, and of these the ones that the model was made for, if it says. */
  offer({ defaults: { width, height }, limits, size_multiple, good_sides }) {
    this.#multiple = size_multiple;
    this.#goodSides = good_sides ?? null;
    this.#limits = limits;
    for (const id of ["width", "height"]) Object.assign(element(id), { min: limits.min_side, max: limits.max_side });
    const [least, most] = this.#goodSides ?? [limits.min_side, limits.max_side];
    const side = Math.sqrt(width * height);
    const round = (length) => Math.round(length / size_multiple) * size_multiple;
    const presets = RATIOS.map(([across, down]) => {
      const size = [round(side * Math.sqrt(across / down)), round(side * Math.sqrt(down / across))];
      return { id: `size-${across}-${down}`, label: `${across}:${down}`, size };
    }).filter(({ size }) => Math.min(...size) >= least && Math.max(...size) <= most);
    presets.unshift({ id: "size-picture", label: "Picture", size: this.#picture ?? [width, height] });
    presets.push({ id: "size-custom", label: "Custom", size: null });
    this.#sizes = new Map(presets.map(({ id, size }) => [id, size]));
    element("presets").replaceChildren(...presets.map(preset));
    this.#showPicture();
  }

  /** Offer the size of a picture to start from, and choose it if it is new; null where there is none any more. */
  offerPicture(size) {
    const isNew = size !== null && this.#picture === null;
    this.#picture = size;
    if (this.#sizes.size === 0) return; // until the server has told about itself
    const picture = element("size-picture");
    if (isNew) this.#before = element("presets").querySelector(":checked")?.id ?? null;
    if (isNew) picture.checked = true;
    if (size === null && picture.checked) element(this.#before ?? "size-custom").checked = true;
    this.#showPicture();
    this.#changed();
  }

  /** Whether pictures get the size of the one that they start from. */
  get isPictures() {
    return element("size-picture")?.checked ?? false;
  }

  choosePictures() {
    element("size-picture").checked = true;
    this.#changed();
  }

  choose(width, height) {
    [element("width").value, element("height").value] = [width, height];
    const isIt = ([id, size]) => id !== "size-picture" && size && size[0] === width && size[1] === height;
    const chosen = [...this.#sizes].find(isIt);
    element(chosen ? chosen[0] : "size-custom").checked = true;
    this.#changed();
  }

  /** Show the sides, to be typed. */
  chooseCustom() {
    element("size-custom").checked = true;
    this.#changed();
  }

  /** The chosen preset's width and height; null if they are typed, or the picture's. */
  chosen() {
    const preset = element("presets").querySelector(":checked");
    return preset && !this.isPictures ? this.#sizes.get(preset.id) : null;
  }

  #showPicture() {
    const preset = element("size-picture");
    preset.closest("label").hidden = this.#picture === null;
    element("presets").classList.toggle("many", this.#picture !== null);
    if (this.#picture) preset.closest("label").querySelector(".shape").replaceWith(shape(this.#picture));
  }

  #changed() {
    const size = this.chosen();
    element("custom-size").hidden = size !== null || this.isPictures;
    if (size) [element("width").value, element("height").value] = size;
    this.#note();
  }

  #note() {
    if (this.isPictures && this.#picture) return this.#notePictures(...this.#picture);
    const up = (length) => Math.ceil(length / this.#multiple) * this.#multiple;
    const [width, height] = ["width", "height"].map((id) => element(id).valueAsNumber);
    const parts = [];
    if (width && height) {
      const rounded = up(width) !== width || up(height) !== height;
      parts.push(`${rounded ? "Rounded up to " : ""}${up(width)} × ${up(height)} pixels`);
    }
    const [least, most] = this.#goodSides ?? [0, Infinity];
    const outside = up(Math.min(width, height)) < least || up(Math.max(width, height)) > most;
    if (this.#goodSides && (outside || this.chosen() === null)) {
      parts.push(`the model was made for sides from ${least} to ${most}`);
    }
    element("size-note").textContent = parts.join("; ");
    element("size-note").classList.toggle("outside", outside);
  }

  #notePictures(width, height) {
    const { max_pixels, max_side } = this.#limits;
    const [least, most] = this.#goodSides ?? [0, max_side];
    const [shorter, longer] = [Math.min(width, height), Math.max(width, height)];
    const isScaled = width * height > max_pixels || longer > most || shorter < least;
    const size = `As the picture: ${width} × ${height} pixels`;
    element("size-note").textContent = isScaled ? `${size}, scaled to what the model draws` : size;
    element("size-note").classList.remove("outside");
  }
}

function preset({ id, label, size }) {
  const input = Object.assign(document.createElement("input"), { type: "radio", name: "preset", id });
  const item = document.createElement("label");
  item.className = "preset";
  const frame = document.createElement("span");
  frame.className = "shape-frame";
  frame.append(shape(size));
  item.append(input, frame, label);
  return item;
}

/** A frame of these proportions; without a size, one that stands for any. */
function shape(size) {
  const frame = document.createElement("span");
  frame.className = "shape";
  if (size) frame.style.aspectRatio = `${size[0]} / ${size[1]}`;
  else frame.classList.add("shape-custom");
  if (size && size[0] < size[1]) frame.classList.add("shape-tall");
  return frame;
}
