// The form: what to draw, and errors next to the parameter they are about.

import { LoraList } from "./loras.js";

const RATIOS = [[1, 1], [4, 3], [3, 4], [16, 9], [9, 16]];
const EXAMPLES = [
  "a red circle on a blue background",
  "a large yellow star on a purple background",
  "a small white heart at the top on a green background",
  "a green triangle left of an orange square on a black background",
  "three pink rings on a cyan background",
];
const NUMBERS = ["n", "seed", "steps", "guidance"];
// names that the API also knows a parameter by
const FIELD_OF = { num_images: "n", size: "width", num_inference_steps: "steps", guidance_scale: "guidance" };

const element = (id) => document.getElementById(id);

export class Form {
  #sizes = new Map();
  #multiple = 16;
  #maxSeed = Number.MAX_SAFE_INTEGER;
  #loras = new LoraList();

  /** `onSubmit` gets the parameters of `POST /v1/images/generations`. */
  constructor(onSubmit) {
    this.form = element("form");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.clearErrors();
      const parameters = this.read();
      if (parameters) onSubmit(parameters);
    });
    this.form.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      this.form.requestSubmit();
    });
    this.form.addEventListener("input", ({ target }) => this.#showError(target.name || target.closest("fieldset")?.name, ""));
    element("presets").addEventListener("change", () => this.#sizeChanged());
    for (const id of ["width", "height"]) element(id).addEventListener("input", () => this.#noteSize());
    element("draw-seed").addEventListener("click", () => (element("seed").value = this.drawSeed()));
    if (/Mac|iPhone|iPad/.test(navigator.platform)) element("shortcut").textContent = "⌘ ↵";
  }

  /** Fill in what the server told about itself. */
  apply({ is_demo, defaults, limits, output_formats, size_multiple, max_lora_strength }) {
    this.#multiple = size_multiple;
    this.#loras.setMost(max_lora_strength);
    this.#maxSeed = limits.max_seed;
    for (const id of ["width", "height"]) Object.assign(element(id), { min: limits.min_side, max: limits.max_side });
    element("n").max = limits.max_images;
    element("seed").max = limits.max_seed;
    element("steps").max = limits.max_steps;
    element("guidance").max = limits.max_guidance;
    element("steps").value = defaults.steps;
    element("guidance").value = defaults.guidance;
    element("output_format").replaceChildren(...output_formats.map((format) => new Option(format.toUpperCase(), format)));
    this.#addPresets(defaults, limits);
    this.setSize(defaults.width, defaults.height);
    element("demo").hidden = !is_demo;
    if (is_demo) element("examples").replaceChildren(...EXAMPLES.map((example) => this.#chip(example)));
  }

  /** Offer these LoRAs, as `GET /v1/loras` lists them. */
  showLoras(loras) {
    this.#loras.show(loras);
  }

  /** Take over the settings of a picture, its seed included. */
  fill({ prompt, negative_prompt, width, height, steps, guidance, seed, output_format, loras }) {
    this.clearErrors();
    element("prompt").value = prompt;
    element("negative_prompt").value = negative_prompt ?? "";
    element("steps").value = steps ?? "";
    element("guidance").value = guidance ?? "";
    element("seed").value = seed;
    element("output_format").value = output_format;
    this.#loras.choose(loras ?? []);
    element("n").value = 1; // the seed is of this picture, whichever it was of its request
    this.setSize(width, height);
    element("prompt").focus();
  }

  setSize(width, height) {
    [element("width").value, element("height").value] = [width, height];
    const preset = [...this.#sizes].find(([, size]) => size && size[0] === width && size[1] === height);
    element(preset ? preset[0] : "size-custom").checked = true;
    this.#sizeChanged();
  }

  /** Any seed of 32 bits, which is easy to read out and to type. */
  drawSeed() {
    return Math.min(crypto.getRandomValues(new Uint32Array(1))[0], this.#maxSeed);
  }

  /** "Use the last picture's seed" takes this one from now on. */
  setLastSeed(seed) {
    const button = element("last-seed");
    button.disabled = false;
    button.onclick = () => (element("seed").value = seed);
  }

  clearErrors() {
    for (const error of this.form.querySelectorAll(".field-error")) error.hidden = true;
    for (const field of this.form.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
  }

  /** Show `message` at the parameter `name`, and go there. False if the form has no such parameter. */
  showError(name, message) {
    const field = this.form.elements[FIELD_OF[name] ?? name];
    if (!field || !this.#showError(field.name, message)) return false;
    if (element("more").contains(field)) element("more").open = true;
    if (field.name === "width" || field.name === "height") {
      element("size-custom").checked = true;
      this.#sizeChanged();
    }
    field.focus();
    return true;
  }

  #showError(name, message) {
    const error = name && element(`${name}-error`);
    if (!error) return false;
    error.textContent = message;
    error.hidden = !message;
    if (message) this.form.elements[name].setAttribute("aria-invalid", "true");
    else this.form.elements[name].removeAttribute("aria-invalid");
    return true;
  }

  /** The parameters of a request, or null after it was said what is wrong. */
  read() {
    const custom = this.#chosenSize() === null;
    for (const name of custom ? [...NUMBERS, "width", "height"] : NUMBERS) {
      if (!element(name).validity.badInput) continue;
      this.showError(name, "Enter a number.");
      return null;
    }
    const prompt = element("prompt").value;
    if (!prompt.trim()) {
      this.showError("prompt", "Say what to draw.");
      return null;
    }
    const loras = this.#loras.read();
    if (!loras) {
      this.showError("loras", "Enter a number for each strength.");
      return null;
    }
    const parameters = { prompt, output_format: element("output_format").value || undefined };
    const [width, height] = this.#chosenSize() ?? [number("width"), number("height")];
    Object.assign(parameters, { width, height });
    for (const name of NUMBERS) parameters[name] = number(name);
    parameters.negative_prompt = element("negative_prompt").value || undefined;
    parameters.loras = loras.length ? loras : undefined;
    return parameters;
  }

  #chip(text) {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.className = "chip";
    chip.textContent = text;
    chip.addEventListener("click", () => {
      element("prompt").value = text;
      this.#showError("prompt", "");
      element("generate").focus();
    });
    return chip;
  }

  #addPresets({ width, height }, limits) {
    const side = Math.sqrt(width * height);
    const round = (length) => Math.round(length / this.#multiple) * this.#multiple;
    const presets = RATIOS.map(([across, down]) => {
      const size = [round(side * Math.sqrt(across / down)), round(side * Math.sqrt(down / across))];
      return { id: `size-${across}-${down}`, label: `${across}:${down}`, size };
    }).filter(({ size }) => Math.min(...size) >= limits.min_side && Math.max(...size) <= limits.max_side);
    presets.push({ id: "size-custom", label: "Custom", size: null });
    this.#sizes = new Map(presets.map(({ id, size }) => [id, size]));
    element("presets").replaceChildren(...presets.map(preset));
  }

  #chosenSize() {
    const chosen = element("presets").querySelector(":checked");
    return chosen ? this.#sizes.get(chosen.id) : null;
  }

  #sizeChanged() {
    const size = this.#chosenSize();
    element("custom-size").hidden = size !== null;
    if (size) [element("width").value, element("height").value] = size;
    this.#noteSize();
  }

  #noteSize() {
    const up = (length) => Math.ceil(length / this.#multiple) * this.#multiple;
    const [width, height] = [number("width"), number("height")];
    const rounded = width && height && (up(width) !== width || up(height) !== height);
    const text = width && height ? `${up(width)} × ${up(height)} pixels` : "";
    element("size-note").textContent = rounded ? `Rounded up to ${text}` : text;
  }
}

function number(id) {
  const { value, valueAsNumber } = element(id);
  return value === "" ? undefined : valueAsNumber;
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
