// Finished pictures, the newest first: shown, kept, deleted.

import { confirmDeletion } from "../dialogs.js";
import { fileName, plural, settingsLine } from "../text.js";
import { keepPixels } from "./pixels.js";

const MAX_PICTURES = 200;

const element = (id) => document.getElementById(id);

/**
 * A picture is {id, blob, format, parameters, seconds, computed, warnings, requestId}; `url` and `tile` are added while it is shown. `start`
 * {image, mask} is what it started from, for as long as the page is open.
 * `opening` resolves with the store; `actions` are open(picture), reuse(picture), vary(picture), startFrom(picture) and
 * compare(picture, picture, the button that was pressed for it).
 */
export class Gallery {
  #loading = null;
  #chosen = null; // to be compared with the next one

  constructor(opening, actions) {
    this.opening = opening;
    this.actions = actions;
    this.pictures = []; // the newest first, as on the page
    element("clear").addEventListener("click", () => this.#clear());
    element("gallery").addEventListener("keydown", ({ key }) => key === "Escape" && this.#choose(null));
  }

  /** Show what the browser has kept. */
  load() {
    this.#loading ??= this.#load();
    return this.#loading;
  }

  /** Show a picture as the newest, and keep it. */
  async add(picture) {
    await this.load(); // older ones go first
    const last = this.pictures[0]?.id ?? 0;
    picture.id = Math.max(Date.now(), Math.floor(last) + 1) + Math.random(); // in order, and unlike another tab's
    const { id, blob, format, parameters, seconds, computed, warnings, requestId } = picture;
    this.#show(picture);
    try {
      await this.store.add({ id, blob, format, parameters, seconds, computed, warnings, requestId });
      await this.#forgetOldest();
    } catch (error) {
      this.#note(`This browser could not keep the last picture (${error.name}): download it if you like it.`);
    }
  }

  async #load() {
    this.store = await this.opening;
    if (!this.store.isLasting) this.#note("This browser does not let the page keep pictures: download those you like.");
    try {
      for (const picture of await this.store.all()) this.#show(picture);
      await this.#forgetOldest();
    } catch (error) {
      this.#note(`This browser could not give back the pictures that it has kept (${error.name}).`);
    }
  }

  /** Delete a picture if the user says yes. Whether it is gone. */
  async delete(picture) {
    if (!(await confirmDeletion("Delete this picture?"))) return false;
    await this.store.delete(picture.id);
    const next = picture.tile.nextElementSibling ?? picture.tile.previousElementSibling;
    this.#hide(picture);
    (next?.querySelector(".picture-open") ?? element("gallery-heading")).focus();
    return true;
  }

  /** Compare a picture with the one that was chosen before, or with the next that is; twice the same is neither. */
  compare(picture) {
    const [first, button] = [this.#chosen, picture.tile.querySelector(".picture-compare")];
    this.#choose(first ? null : picture);
    if (first && first !== picture) this.actions.compare(first, picture, button);
    else button.focus();
  }

  #choose(picture) {
    for (const each of [this.#chosen, picture]) {
      each?.tile.querySelector(".picture-compare").setAttribute("aria-pressed", String(each === picture));
    }
    this.#chosen = picture;
    this.#count();
  }

  async #clear() {
    const shown = [...this.pictures]; // another tab may keep more by now, and this one may get some
    if (!(await confirmDeletion(`Delete all ${plural(shown.length, "picture")}?`))) return;
    await this.store.delete(...shown.map(({ id }) => id));
    for (const picture of shown) this.#hide(picture);
    element("gallery-heading").focus();
  }

  async #forgetOldest() {
    while (this.pictures.length > MAX_PICTURES) {
      const oldest = this.pictures.at(-1);
      this.#hide(oldest);
      await this.store.delete(oldest.id);
    }
  }

  #show(picture) {
    const { parameters, format } = picture;
    picture.url = URL.createObjectURL(picture.blob);
    picture.tile = element("picture-template").content.firstElementChild.cloneNode(true);
    const part = (name) => picture.tile.querySelector(`.picture-${name}`);
    const image = picture.tile.querySelector("img");
    Object.assign(image, { src: picture.url, alt: parameters.prompt, width: parameters.width, height: parameters.height });
    part("prompt").textContent = parameters.prompt;
    part("settings").textContent = settingsLine(parameters);
    Object.assign(part("download"), { href: picture.url, download: fileName(parameters, format) });
    keepPixels(image);
    part("open").addEventListener("click", () => this.actions.open(picture));
    part("reuse").addEventListener("click", () => this.actions.reuse(picture));
    part("vary").addEventListener("click", () => this.actions.vary(picture));
    part("start").addEventListener("click", () => this.actions.startFrom(picture));
    part("compare").addEventListener("click", () => this.compare(picture));
    part("delete").addEventListener("click", () => this.delete(picture));
    this.pictures.unshift(picture);
    element("gallery").prepend(picture.tile);
    this.#count();
  }

  #hide(picture) {
    if (!this.pictures.includes(picture)) return; // it was the oldest, and is forgotten
    if (picture === this.#chosen) this.#choose(null);
    this.pictures.splice(this.pictures.indexOf(picture), 1);
    picture.tile.remove();
    URL.revokeObjectURL(picture.url);
    this.#count();
  }

  #count() {
    const count = this.pictures.length;
    const all = count ? `${count}${count >= MAX_PICTURES ? ", the newest" : ""}` : "";
    element("count").textContent = this.#chosen ? "Choose another" : all;
    const samples = element("empty");
    if (count && samples.contains(document.activeElement)) element("gallery-heading").focus(); // they go
    samples.hidden = count > 0;
    element("clear").hidden = count === 0;
  }

  #note(text) {
    element("gallery-note").textContent = text;
    element("gallery-note").hidden = false;
  }
}
