// The form: what to draw, and errors next to the parameter they are about.

import { StartingPicture } from "../source/starting_picture.js";
import { keep, readKept } from "./kept_settings.js";
import { LoraList } from "./loras.js";
import { SAMPLES } from "./samples.js";
import { SizeChoice } from "./sizes.js";

const PARTS = ["guidance_from", "guidance_until", "mu"]; // of the schedule, empty for the server's
const SCHEDULE = [...PARTS, "sigmas"];
const NUMBERS = ["n", "seed", "steps", "guidance", ...PARTS];
const MORE = ["steps", "guidance", "negative_prompt", "cache", ...SCHEDULE, "output_format"]; // what "More" hides until it is opened
// names that the API also knows a parameter by
const FIELD_OF = { num_images: "n", size: "width", num_inference_steps: "steps", guidance_scale: "guidance" };

const element = (id) => document.getElementById(id);

export class Form {
  #model = null; // until the server has told about itself
  #defaults = {};
  #filling = null; // while settings come back with the picture that they start from
  #maxSeed = Number.MAX_SAFE_INTEGER;
  #sizes = new SizeChoice();
  #loras = new LoraList();
  #start = new StartingPicture({
    onChange: (size) => this.#sizes.offerPicture(size),
    onError: (name, message) => (message ? this.showError(name, message) : this.#showError(name, "")),
  });

  /** `onSubmit` gets the parameters of a request, as `generate` takes them. */
  constructor(onSubmit) {
    this.form = element("form");
    this.form.addEventListener("submit", async (event) => {
      event.preventDefault();
      this.clearErrors();
      if (this.#filling ?? this.#start.opened) await (this.#filling ?? this.#start.opened);
      const parameters = this.read();
      if (parameters) onSubmit(parameters);
    });
    this.form.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      this.form.requestSubmit();
    });
    this.form.addEventListener("input", ({ target }) => this.#showError(target.name || target.closest("fieldset")?.name, ""));
    element("draw-seed").addEventListener("click", () => (element("seed").value = this.drawSeed()));
    element("reset").addEventListener("click", () => this.#reset());
    element("more").addEventListener("toggle", () => this.#showMore());
    for (const kind of ["input", "change", "click"]) this.form.addEventListener(kind, () => this.#keep());
    if (/Mac|iPhone|iPad/.test(navigator.platform)) element("shortcut").textContent = "⌘ ↵";
  }

  /** Fill in what the server told about itself, and what was set for this model before. */
  apply(settings) {
    const { is_demo, defaults, limits, output_formats, max_lora_strength } = settings;
    this.#loras.setMost(max_lora_strength);
    this.#maxSeed = limits.max_seed;
    element("n").max = limits.max_images;
    element("seed").max = limits.max_seed;
    element("steps").max = limits.max_steps;
    element("guidance").max = limits.max_guidance;
    element("output_format").replaceChildren(...output_formats.map((format) => new Option(format.toUpperCase(), format)));
    const isPictures = this.#sizes.isPictures; // where the server has been away for a while
    this.#sizes.offer(settings);
    this.#model = settings.model;
    this.#defaults = { ...defaults, prompt: "", negative_prompt: "", cache: "off", output_format: output_formats[0], seed: "", loras: [] };
    const kept = readKept(settings);
    const prompt = element("prompt").value || (kept.prompt ?? ""); // what the user has typed by now stays
    this.#set({ ...this.#defaults, ...kept, prompt, loras: [] });
    this.#loras.restore(kept.loras ?? []);
    this.#start.apply(settings);
    if (isPictures && this.#start.size) this.#sizes.choosePictures();
    this.#keep();
    element("demo").hidden = !is_demo;
    if (is_demo) element("examples").replaceChildren(...SAMPLES.map(([prompt]) => this.#chip(prompt)));
  }

  /** Offer these LoRAs, as `GET /v1/loras` lists them. */
  showLoras(loras) {
    this.#loras.show(loras);
    this.#keep();
  }

  /** Take over the settings of a picture, its seed and what it started from included. */
  fill(parameters) {
    const filling = this.#fill(parameters).finally(() => this.#filling === filling && (this.#filling = null));
    this.#filling = filling;
    return filling;
  }

  async #fill(parameters) {
    this.clearErrors();
    this.#set(parameters);
    element("n").value = 1; // the seed is of this picture, whichever it was of its request
    element("prompt").focus();
    await this.#start.fill(parameters);
    if (this.#start.size && !parameters.image.sized) this.#sizes.choosePictures();
    else this.#sizes.choose(parameters.width, parameters.height);
    this.#keep();
  }

  /** Start from a picture that was made here; its prompt is where one begins who has not written any. */
  async startFrom(file, name, prompt) {
    if (!element("prompt").value.trim()) element("prompt").value = prompt;
    element("prompt").focus();
    element("source").scrollIntoView({ block: "nearest" });
    await this.#start.choose(file, name);
    this.#keep();
  }

  /** Draw with the form's settings, but for these, which stay in the form but for the seed: the next picture has another. */
  draw({ seed, ...parameters }) {
    this.clearErrors();
    this.#start.fill({});
    this.#set({ ...this.#defaults, ...this.#settings(), ...parameters, seed: seed ?? "" });
    element("n").value = 1;
    this.form.requestSubmit();
    element("seed").value = "";
    this.#keep();
  }

  #set({ prompt, negative_prompt, width, height, steps, guidance, cache, sigmas, seed, output_format, loras, ...rest }) {
    element("prompt").value = prompt;
    element("negative_prompt").value = negative_prompt ?? "";
    element("steps").value = steps ?? "";
    element("guidance").value = guidance ?? "";
    element("cache").value = cache ?? "off";
    element("sigmas").value = (sigmas ?? []).join(", ");
    for (const name of PARTS) element(name).value = rest[name] ?? "";
    element("seed").value = seed;
    element("output_format").value = output_format;
    this.#loras.choose(loras ?? []);
    this.#sizes.choose(width, height);
  }

  /** What is set now, as `#set` takes it; without what is empty or no number. */
  #settings() {
    const [width, height] = this.#sizes.chosen() ?? [number("width"), number("height")];
    const settings = { width, height, loras: this.#loras.read() ?? undefined };
    for (const name of ["steps", "guidance", "seed", ...PARTS]) settings[name] = number(name);
    settings.sigmas = readSigmas() ?? undefined;
    for (const name of ["prompt", "negative_prompt", "cache", "output_format"]) settings[name] = element(name).value;
    return Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== undefined));
  }

  /** Keep what is not the server's own, so that what nobody has set follows the server. */
  #keep() {
    if (this.#model === null) return;
    const isOwn = ([name, value]) => JSON.stringify(value) !== JSON.stringify(this.#defaults[name]);
    const set = Object.fromEntries(Object.entries(this.#settings()).filter(isOwn));
    if (set.width || set.height) [set.width, set.height] = [number("width"), number("height")];
    keep(this.#model, set);
    element("reset").disabled = !this.#start.isChanged && Object.keys(set).every((name) => name === "prompt");
    element("more").classList.toggle("changed", MORE.some((name) => name in set) || this.#start.isMoreChanged);
    element("schedule").classList.toggle("changed", SCHEDULE.some((name) => name in set));
  }

  /** Go back to the server's own settings; the prompt stays. */
  #reset() {
    this.clearErrors();
    this.#start.reset();
    this.#set({ ...this.#defaults, prompt: element("prompt").value });
    if (this.#start.size) this.#sizes.choosePictures();
    element("n").value = 1;
    document.querySelector("#more > summary").focus(); // the button has done its work
  }

  /** Bring what "More" opens into sight: all of it, or its beginning where there is no room. */
  #showMore() {
    const more = element("more");
    if (!more.open) return;
    const room = Math.min(this.form.clientHeight, innerHeight) - element("submit").offsetHeight;
    more.scrollIntoView({ block: more.offsetHeight > room ? "start" : "nearest" });
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
    const [whole] = name.split("."); // of "outpaint.left"
    const field = this.form.elements[FIELD_OF[whole] ?? whole];
    if (!field || !this.#showError(field.name, message)) return false;
    for (const part of this.form.querySelectorAll("details")) if (part.contains(field)) part.open = true;
    if (field.name === "width" || field.name === "height") {
      this.#sizes.chooseCustom();
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
    const custom = this.#sizes.chosen() === null && !this.#sizes.isPictures;
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
    const sigmas = readSigmas();
    if (sigmas === null) {
      this.showError("sigmas", "Enter numbers, as 1, 0.75, 0.5, 0.25.");
      return null;
    }
    const loras = this.#loras.read();
    if (!loras) {
      this.showError("loras", "Enter a number for each strength.");
      return null;
    }
    const parameters = { prompt, output_format: element("output_format").value || undefined };
    const [width, height] = this.#sizes.chosen() ?? [number("width"), number("height")];
    const start = this.#start.read();
    if (!start) return null;
    const isPictures = this.#sizes.isPictures;
    Object.assign(parameters, isPictures ? {} : { width, height }, start);
    if (start.image) start.image.sized = !isPictures;
    for (const name of NUMBERS) parameters[name] = number(name);
    parameters.negative_prompt = element("negative_prompt").value || undefined;
    parameters.cache = element("cache").value === "off" ? undefined : element("cache").value;
    if (sigmas) Object.assign(parameters, { sigmas, steps: sigmas.length });
    parameters.loras = loras.length ? loras : undefined;
    return parameters;
  }

  /** A button that fills in `prompt`, and shows its first words: those before the background. */
  #chip(prompt) {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.className = "chip";
    chip.textContent = prompt.replace(/ on an? .*/, "");
    chip.ariaLabel = chip.dataset.tip = prompt;
    chip.addEventListener("click", () => {
      element("prompt").value = prompt;
      this.#showError("prompt", "");
      element("generate").focus();
    });
    return chip;
  }
}

function number(id) {
  const { value, valueAsNumber } = element(id);
  return value === "" ? undefined : valueAsNumber;
}

/** The noise levels, undefined for even ones, null for what are no numbers; a 0 at the end is where the last step ends. */
function readSigmas() {
  const words = element("sigmas").value.split(/[\s,]+/).filter(Boolean);
  const sigmas = words.map(Number);
  if (sigmas.at(-1) === 0) sigmas.pop();
  if (!sigmas.every(Number.isFinite)) return null;
  return sigmas.length ? sigmas : undefined;
}
