// The form's part about a picture to start from: which, its mask, its strength, and what is added around it.

import { listenForFiles } from "./arrivals.js";
import { Mask } from "./mask.js";
import { Painter, showMask } from "./painter.js";
import { megabytes, openSource, sizeWith, SourceError } from "./source.js";
import { defaultStrength, meaning } from "./strength.js";

const SIDES = ["left", "top", "right", "bottom"];
const NUMBERS = ["mask_feather", "mask_crop"];

const element = (id) => document.getElementById(id);

export class StartingPicture {
  #source = null;
  #mask = null;
  #limits = {};
  #isOffered = false; // by the server
  #isOwnStrength = false; // else it follows from what is to be drawn anew
  #opening = 0;
  #painter = new Painter();

  /** `onChange(size)` gets the size that pictures have now, or null; `onError(name, message)` what is wrong. */
  constructor({ onChange, onError }) {
    Object.assign(this, { onChange, onError });
    this.opened = null; // while a picture is read, resolves when it is
    listenForFiles(element("source"), (file, count) => this.#chooseFirst(file, count));
    element("image").addEventListener("change", ({ target }) => {
      if (target.files.length) this.choose(target.files[0], target.files[0].name);
      target.value = ""; // so that the same may be chosen again
    });
    element("source-remove").addEventListener("click", () => {
      this.#take(null);
      element("image").focus();
    });
    for (const id of ["source-sheet", "mask"]) element(id).addEventListener("click", () => this.#paint());
    element("mask-remove").addEventListener("click", () => this.#removeMask());
    element("strength").addEventListener("input", () => (this.#isOwnStrength = true));
    element("source").addEventListener("input", () => this.#update());
    for (const id of ["steps", "strength_steps"]) element(id).addEventListener("input", () => this.#tellStrength());
  }

  /** Offer it, if the server takes pictures. */
  apply({ image_input, limits }) {
    this.#isOffered = image_input === true;
    this.#limits = limits;
    element("source").hidden = false;
    element("source-off").hidden = this.#isOffered;
    document.body.classList.toggle("takes-pictures", this.#isOffered);
    if (!this.#isOffered) this.#take(null);
    this.#update();
  }

  /** Start from this file. Resolves when it has been read, or it was said why it cannot be. */
  choose(file, name) {
    const opened = this.#open(file, name || "picture.png").finally(() => this.opened === opened && (this.opened = null));
    this.opened = opened;
    return opened;
  }

  async #chooseFirst(file, count) {
    const before = this.#source;
    await this.choose(file, file.name);
    if (count > 1 && this.#source !== before) this.onError("image", `The first of ${count} was taken: one picture is drawn over.`);
  }

  async #open(file, name) {
    const opening = ++this.#opening;
    this.onError("image", "");
    try {
      if (!this.#isOffered) throw new SourceError("This server takes no pictures.");
      const source = await openSource(file, name, this.#limits);
      if (opening === this.#opening) this.#take(source); // else another one was chosen meanwhile
    } catch (error) {
      if (!(error instanceof SourceError)) throw error;
      if (opening === this.#opening) this.onError("image", error.message);
    }
  }

  /** Start as a picture did, as `read` has it, and say so if the picture to start from is no longer here. */
  async fill({ image, mask, strength, strength_steps, outpaint, mask_feather, mask_crop }) {
    if (!image) return this.#take(null);
    if (image.file) await this.choose(image.file, image.name);
    else this.#take(null);
    if (this.#source) this.#put(mask?.copy?.() ?? null);
    for (const side of SIDES) element(side).value = outpaint?.[side] || "";
    for (const [name, value] of Object.entries({ mask_feather, mask_crop })) element(name).value = value ?? "";
    element("strength_steps").value = strength_steps ?? "partial";
    this.#isOwnStrength = strength !== undefined && strength !== defaultStrength(this.#isPart(mask));
    if (this.#isOwnStrength) element("strength").value = strength;
    this.#update();
    if (!this.#source) this.onError("image", `Choose ${image.name} again: this page has it no more${mask ? ", nor its mask" : ""}.`);
  }

  /** Set all but picture and mask to what the server would do. */
  reset() {
    for (const name of [...SIDES, ...NUMBERS]) element(name).value = "";
    element("strength_steps").value = "partial";
    this.#isOwnStrength = false;
    this.#update();
  }

  /** The parameters of a request, besides those without a picture; null after it was said what is wrong. */
  read() {
    if (!this.#source) return {};
    for (const name of [...SIDES, ...NUMBERS]) {
      if (!element(name).validity.badInput) continue;
      this.onError(SIDES.includes(name) ? "outpaint" : name, "Enter a number.");
      return null;
    }
    const { file, name, width, height } = this.#source;
    return {
      image: { file, name, width, height },
      mask: this.#mask?.copy(),
      strength: element("strength").valueAsNumber,
      strength_steps: element("strength_steps").value === "full" ? "full" : undefined,
      outpaint: this.#outpaint(),
      mask_feather: this.#isPart() ? number("mask_feather") : undefined,
      mask_crop: this.#mask ? number("mask_crop") : undefined,
    };
  }

  /** Whether anything is set that `reset` changes. */
  get isChanged() {
    return this.isMoreChanged || (this.#source !== null && (this.#outpaint() !== undefined || this.#isOwnStrength));
  }

  /** Whether anything of it is set that "More" hides until it is opened. */
  get isMoreChanged() {
    return this.#source !== null && (NUMBERS.some((name) => element(name).value) || element("strength_steps").value !== "partial");
  }

  /** The size that pictures have which are not asked for in another. Null without a picture. */
  get size() {
    return this.#source && sizeWith(this.#source, this.#outpaint());
  }

  #take(source) {
    this.#opening += 1;
    this.#source = source;
    this.#put(null);
    this.onError("image", "");
    if (source) {
      const canvas = element("source-picture");
      [canvas.width, canvas.height] = [source.sheet.width, source.sheet.height];
      canvas.getContext("2d").drawImage(source.sheet, 0, 0);
      const { name, width, height, file } = source;
      element("source-facts").textContent = `${name} · ${width} × ${height} · ${megabytes(file.size)}`.replace(/ (×|.B)/g, "\u00a0$1");
    } else {
      for (const side of SIDES) element(side).value = "";
      this.#isOwnStrength = false;
    }
    this.#update();
  }

  async #paint() {
    this.onError("mask", "");
    const mask = this.#mask ?? new Mask(this.#source.width, this.#source.height);
    await this.#painter.open(this.#source, mask);
    this.#put(mask.share() ? mask : null);
    this.#update();
    element("mask").focus();
  }

  #removeMask() {
    this.#put(null);
    this.onError("mask", "");
    this.#update();
    element("mask").focus();
  }

  /** Lay a mask over the picture, or none. */
  #put(mask) {
    this.#mask = mask;
    if (mask) showMask(element("source-mask"), this.#source.sheet, mask);
    element("source-mask").hidden = element("mask-remove").hidden = mask === null;
    element("mask").textContent = mask ? "Change the mask" : "Paint a mask";
  }

  #outpaint() {
    const added = Object.fromEntries(SIDES.map((side) => [side, number(side) ?? 0]));
    return SIDES.some((side) => added[side]) ? added : undefined;
  }

  #isPart(mask = this.#mask) {
    return Boolean(mask || this.#outpaint());
  }

  #update() {
    const source = this.#source;
    element("source-drop").hidden = !this.#isOffered || source !== null;
    element("source-chosen").hidden = source === null;
    for (const part of document.querySelectorAll(".with-source")) part.hidden = source === null;
    element("mask-fields").hidden = source === null || !this.#isPart();
    element("mask-crop-field").hidden = this.#mask === null;
    if (source) {
      if (!this.#isOwnStrength) element("strength").value = defaultStrength(this.#isPart());
      this.#frame();
      this.#tellStrength();
    }
    this.onChange(this.size);
  }

  /** Show the picture within what it becomes. */
  #frame() {
    const outpaint = this.#outpaint();
    const [width, height] = this.size;
    const { left = 0, top = 0 } = outpaint ?? {};
    const frame = element("source-frame");
    frame.classList.toggle("extended", outpaint !== undefined);
    frame.style.setProperty("--shape", `${width} / ${height}`);
    frame.style.setProperty("--wide", width / height);
    const sheet = element("source-sheet");
    sheet.style.left = `${(100 * left) / width}%`;
    sheet.style.top = `${(100 * top) / height}%`;
    sheet.style.width = `${(100 * this.#source.width) / width}%`;
    sheet.style.height = `${(100 * this.#source.height) / height}%`;
    element("outpaint-note").textContent = outpaint ? `Becomes ${width} × ${height} pixels.` : "Pixels to add on each side.";
    element("extend").classList.toggle("changed", outpaint !== undefined);
  }

  #tellStrength() {
    if (!this.#source) return;
    const strength = element("strength").valueAsNumber;
    const part = this.#mask ? "What you painted" : this.#outpaint() ? "What is added" : null;
    const all = element("strength_steps").value === "full";
    const words = meaning(strength, { part, steps: number("steps") ?? null, all });
    element("strength-value").textContent = strength.toFixed(2);
    element("strength").ariaValueText = `${strength.toFixed(2)}: ${words}`;
    element("strength-note").textContent = words;
  }
}

function number(id) {
  const { value, valueAsNumber } = element(id);
  return value === "" ? undefined : valueAsNumber;
}
