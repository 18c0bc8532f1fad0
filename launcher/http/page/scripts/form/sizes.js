// The size: a shape to choose, or sides to type.

const RATIOS = [[1, 1], [4, 3], [3, 4], [16, 9], [9, 16]];

const element = (id) => document.getElementById(id);

export class SizeChoice {
  #sizes = new Map(); // of each preset by its id; null of the one for sides that are typed
  #multiple = 16;
  #goodSides = null;

  constructor() {
    element("presets").addEventListener("change", () => this.#changed());
    for (const id of ["width", "height"]) element(id).addEventListener("input", () => this.#note());
  }

  /** Offer sizes that the server takes, and of these the ones that the model was made for, if it says. */
  offer({ defaults: { width, height }, limits, size_multiple, good_sides }) {
    this.#multiple = size_multiple;
    this.#goodSides = good_sides ?? null;
    for (const id of ["width", "height"]) Object.assign(element(id), { min: limits.min_side, max: limits.max_side });
    const [least, most] = this.#goodSides ?? [limits.min_side, limits.max_side];
    const side = Math.sqrt(width * height);
    const round = (length) => Math.round(length / size_multiple) * size_multiple;
    const presets = RATIOS.map(([across, down]) => {
      const size = [round(side * Math.sqrt(across / down)), round(side * Math.sqrt(down / across))];
      return { id: `size-${across}-${down}`, label: `${across}:${down}`, size };
    }).filter(({ size }) => Math.min(...size) >= least && Math.max(...size) <= most);
    presets.push({ id: "size-custom", label: "Custom", size: null });
    this.#sizes = new Map(presets.map(({ id, size }) => [id, size]));
    element("presets").replaceChildren(...presets.map(preset));
  }

  choose(width, height) {
    [element("width").value, element("height").value] = [width, height];
    const chosen = [...this.#sizes].find(([, size]) => size && size[0] === width && size[1] === height);
    element(chosen ? chosen[0] : "size-custom").checked = true;
    this.#changed();
  }

  /** Show the sides, to be typed. */
  chooseCustom() {
    element("size-custom").checked = true;
    this.#changed();
  }

  /** The chosen preset's width and height; null if they are typed. */
  chosen() {
    const preset = element("presets").querySelector(":checked");
    return preset ? this.#sizes.get(preset.id) : null;
  }

  #changed() {
    const size = this.chosen();
    element("custom-size").hidden = size !== null;
    if (size) [element("width").value, element("height").value] = size;
    this.#note();
  }

  #note() {
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
}

function preset({ id, label, size }) {
  const input = Object.assign(document.createElement("input"), { type: "radio", name: "preset", id });
  const shape = document.createElement("span");
  shape.className = "shape";
  if (size) shape.style.aspectRatio = `${size[0]} / ${size[1]}`;
  else shape.classList.add("shape-custom");
  if (size && size[0] < size[1]) shape.classList.add("shape-tall");
  const item = document.createElement("label");
  item.className = "preset";
  const frame = document.createElement("span");
  frame.className = "shape-frame";
  frame.append(shape);
  item.append(input, frame, label);
  return item;
}
