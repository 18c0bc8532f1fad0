// One picture, as large as the window allows; arrow keys and swipes go to its neighbours.

import { offerCopies } from "../jobs/snippets.js";
import { computedOf, fileName, maskName, settingsLine } from "../text.js";
import { shortWarning, tell } from "../told.js";
import { fit } from "./pixels.js";

const SWIPE = 40; // pixels

const element = (id) => document.getElementById(id);

export class Lightbox {
  #picture = null;
  #touched = null; // where a finger was put down

  /**
   * `actions` are reuse(picture), vary(picture), startFrom(picture), compare(picture), before(picture, button) and
   * report(picture, called when it was sent).
   */
  constructor(gallery, actions) {
    this.gallery = gallery;
    this.dialog = element("lightbox");
    this.dialog.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      if (event.key === "ArrowLeft") this.#move(-1);
      if (event.key === "ArrowRight") this.#move(1);
    });
    this.dialog.addEventListener("click", (event) => {
      const beside = event.target === this.dialog || event.target.matches(".lightbox-stage, .lightbox-frame");
      if (beside) this.dialog.close();
    });
    this.dialog.addEventListener("close", () => this.#picture?.tile.querySelector(".picture-open").focus());
    const stage = this.dialog.querySelector(".lightbox-stage");
    stage.addEventListener("pointerdown", (event) => (this.#touched = event.pointerType === "mouse" ? null : event));
    stage.addEventListener("pointerup", (event) => this.#swiped(event));
    stage.addEventListener("pointercancel", () => (this.#touched = null));
    fit(element("lightbox-image"), element("lightbox-frame"));
    offerCopies(this.dialog, () => ({ ...this.#picture.parameters, output_format: this.#picture.format }));
    const on = (name, action) => element(`lightbox-${name}`).addEventListener("click", action);
    on("close", () => this.dialog.close());
    on("previous", () => this.#move(-1));
    on("next", () => this.#move(1));
    on("reuse", () => this.#leave(actions.reuse));
    on("vary", () => this.#leave(actions.vary));
    on("start", () => this.#leave(actions.startFrom));
    on("before", () => actions.before(this.#picture, element("lightbox-before")));
    on("compare", () => this.#leave(actions.compare));
    on("report", () => this.#report(actions.report));
    on("delete", () => this.#delete());
  }

  /** Offer to report pictures, if the server takes reports. */
  offerReports(isOffered) {
    element("lightbox-report").hidden = !isOffered;
  }

  open(picture) {
    this.#show(picture);
    this.dialog.showModal();
  }

  #show(picture) {
    this.#picture = picture;
    const { parameters, url, format, seconds, computed, warnings } = picture;
    Object.assign(element("lightbox-image"), { src: url, alt: parameters.prompt });
    element("lightbox-prompt").textContent = parameters.prompt;
    const lines = [settingsLine(parameters)];
    if (parameters.negative_prompt) lines.push(`without: ${parameters.negative_prompt}`);
    if (parameters.sigmas) lines.push(`sigmas ${parameters.sigmas.join(" ")}`);
    if (parameters.mu !== undefined) lines.push(`mu ${parameters.mu}`);
    if (computed) lines.push(computedOf(computed));
    if (seconds) lines.push(`made in ${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`);
    element("lightbox-settings").textContent = lines.join(" · ");
    if (warnings?.length) tell(element("lightbox-told"), shortWarning(warnings));
    else element("lightbox-told").hidden = true;
    Object.assign(element("lightbox-download"), { href: url, download: fileName(parameters, format) });
    element("lightbox-before").hidden = !picture.start;
    element("lightbox-report").textContent = picture.isReported ? "Reported" : "Report";
    element("lightbox-report").disabled = Boolean(picture.isReported);
    this.#offerMask(picture);
    element("lightbox-previous").disabled = !this.#neighbour(-1);
    element("lightbox-next").disabled = !this.#neighbour(1);
  }

  /** The mask, which what is copied wants beside the picture. */
  async #offerMask({ start, parameters }) {
    const link = element("lightbox-mask");
    URL.revokeObjectURL(link.href);
    link.hidden = true;
    if (!start?.mask) return;
    const file = await start.mask.file();
    if (this.#picture.start !== start) return; // another is shown by now
    Object.assign(link, { href: URL.createObjectURL(file), download: maskName(parameters.image.name), hidden: false });
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

  #swiped({ pointerId, clientX, clientY }) {
    const from = this.#touched;
    this.#touched = null;
    if (from?.pointerId !== pointerId || visualViewport.scale > 1) return; // a finger moves an enlarged page
    const [across, down] = [clientX - from.clientX, clientY - from.clientY];
    if (Math.abs(across) > SWIPE && Math.abs(across) > 2 * Math.abs(down)) this.#move(across < 0 ? 1 : -1);
  }

  #report(action) {
    const picture = this.#picture;
    action(picture, () => {
      picture.isReported = true;
      if (this.#picture !== picture) return;
      this.#show(picture);
      element("lightbox-close").focus(); // a disabled button would lose the keyboard
    });
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
