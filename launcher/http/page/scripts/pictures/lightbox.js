// One picture, as large as the window allows; arrow keys go to its neighbours.

import { fileName, settingsLine } from "../text.js";

const MAX_SCALE = 4; // more shows nothing but the smoothing

const element = (id) => document.getElementById(id);

export class Lightbox {
  #picture = null;

  /** `actions` are reuse(picture) and vary(picture). */
  constructor(gallery, actions) {
    this.gallery = gallery;
    this.dialog = element("lightbox");
    this.dialog.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      if (event.key === "ArrowLeft") this.#move(-1);
      if (event.key === "ArrowRight") this.#move(1);
    });
    this.dialog.addEventListener("click", (event) => {
      const beside = event.target === this.dialog || event.target.classList.contains("lightbox-stage");
      if (beside) this.dialog.close();
    });
    this.dialog.addEventListener("close", () => this.#picture?.tile.querySelector(".picture-open").focus());
    const on = (name, action) => element(`lightbox-${name}`).addEventListener("click", action);
    on("close", () => this.dialog.close());
    on("previous", () => this.#move(-1));
    on("next", () => this.#move(1));
    on("reuse", () => this.#leave(actions.reuse));
    on("vary", () => this.#leave(actions.vary));
    on("delete", () => this.#delete());
  }

  open(picture) {
    this.#show(picture);
    this.dialog.showModal();
  }

  #show(picture) {
    this.#picture = picture;
    const { parameters, url, format, seconds, warnings } = picture;
    const image = element("lightbox-image");
    Object.assign(image, { src: url, alt: parameters.prompt });
    image.style.maxWidth = `${MAX_SCALE * parameters.width}px`;
    image.style.maxHeight = `${MAX_SCALE * parameters.height}px`;
    element("lightbox-prompt").textContent = parameters.prompt;
    const lines = [settingsLine(parameters)];
    if (parameters.negative_prompt) lines.push(`without: ${parameters.negative_prompt}`);
    if (seconds) lines.push(`made in ${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`);
    element("lightbox-settings").textContent = [...lines, ...(warnings ?? [])].join(" · ");
    Object.assign(element("lightbox-download"), { href: url, download: fileName(parameters, format) });
    element("lightbox-previous").disabled = !this.#neighbour(-1);
    element("lightbox-next").disabled = !this.#neighbour(1);
  }

  #neighbour(by) {
    return this.gallery.pictures[this.gallery.pictures.indexOf(this.#picture) + by];
  }

  #move(by) {
    const picture = this.#neighbour(by);
    if (!picture) return;
    const focused = document.activeElement;
    this.#show(picture);
    if (focused.disabled) element("lightbox-close").focus(); // a disabled button would lose the keyboard
  }

  #leave(action) {
    this.dialog.close();
    action(this.#picture);
  }

  async #delete() {
    const next = this.#neighbour(1) ?? this.#neighbour(-1);
    if (!(await this.gallery.delete(this.#picture))) return;
    if (next) {
      this.#show(next);
      element("lightbox-delete").focus();
    } else {
      this.#picture = null;
      this.dialog.close();
    }
  }
}
