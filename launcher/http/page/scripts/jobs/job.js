// Requests that run: a card each, with progress, previews and a way to stop.

import { generate, RequestError } from "../api.js";
import { askForKey } from "../dialogs.js";
import { sizeWith } from "../source/source.js";
import { duration, plural } from "../text.js";
import { shortWarning, tell } from "../told.js";
import { Countdown } from "./countdown.js";
import { reasonOf } from "./reasons.js";

const MAX_STREAMS = 4; // at once; a browser opens six connections to a server, and other things want some
const MAX_WAITS = 3; // for the engine to be ready, before a request is given up
const PREVIEWS = 12; // of an image, at most

let streams = 0;
let running = 0; // jobs that leaving the page would end
let warned = null; // the job whose card tells of a warning
const waiting = [];

async function takeStream() {
  if (streams < MAX_STREAMS) streams += 1;
  else await new Promise((resolve) => waiting.push(resolve)); // who gives a stream back hands it over
}

function giveStreamBack() {
  const next = waiting.shift();
  if (next) next();
  else streams -= 1;
}

/** Whether there are pictures to come. */
export const isAnythingRunning = () => running > 0;

const now = () => performance.now() / 1000;

/**
 * One request, from when it is asked for to its last picture.
 * `page` has what it needs of the rest: engine, announce(text), onFieldError(error), and onPicture(picture),
 * which resolves when the picture is kept.
 */
export class Job {
  #stop = null; // of the run, while there is one
  #attempt = 1;
  #isDrawing = false;
  #status = "";
  #position = Infinity;
  #countdown = null; // while there are estimates
  #done = new Set();
  #warnings = [];

  constructor(parameters, page) {
    warned?.#close({ focus: false }); // its warning stays with its pictures
    this.parameters = parameters;
    this.page = page;
    this.card = document.getElementById("job-template").content.firstElementChild.cloneNode(true);
    this.card.ariaLabel = parameters.prompt;
    this.#part("prompt").textContent = parameters.prompt;
    this.#part("cancel").addEventListener("click", () => (this.#stop ? this.#cancel() : this.#close()));
    this.#part("retry").addEventListener("click", () => this.#run());
    this.tiles = Array.from({ length: Math.max(1, Math.min(parameters.n ?? 1, 100)) }, () => this.#addTile());
    document.getElementById("jobs").prepend(this.card);
    this.card.scrollIntoView({ block: "nearest" }); // on a phone it is below the form
    this.#run();
  }

  async #run() {
    const stop = (this.#stop = new AbortController());
    if (this.#part("retry").contains(document.activeElement)) this.#part("cancel").focus(); // the other is hidden
    this.#part("retry").hidden = this.#part("told").hidden = true;
    this.#part("cancel").textContent = "Cancel";
    this.card.classList.remove("ended", "withheld");
    this.#attempt = 1;
    this.#isDrawing = false;
    const clock = setInterval(() => this.#showStatus(), 1000);
    running += 1;
    this.#say("Waiting for your other pictures");
    this.#showBar(null);
    await takeStream();
    try {
      if (stop.signal.aborted) return;
      await this.#generate(stop.signal);
      this.#stop = null;
      this.#finish();
    } catch (error) {
      if (stop.signal.aborted) return;
      this.#stop = null;
      this.#fail(error);
    } finally {
      clearInterval(clock);
      running -= 1;
      giveStreamBack();
    }
  }

  async #generate(signal) {
    for (let waits = 0; ; ) {
      this.#say(this.parameters.image ? "Sending the picture" : "Asking the engine");
      try {
        for await (const event of generate(this.#request(), signal)) {
          signal.throwIfAborted();
          await this.#handle(event);
        }
        if (this.#done.size < this.tiles.length) throw new RequestError("The connection to the server was lost.");
        return;
      } catch (error) {
        if (signal.aborted) throw error;
        if (error.status === 401 && (await askForKey(error.message))) continue;
        if (error.status !== 503 || ++waits > MAX_WAITS) throw error;
        const isUnchecked = error.code === "filter_unavailable";
        this.#say(isUnchecked ? "Waiting for the content filter" : "Waiting for the engine to be ready");
        const pause = new Promise((resolve) => setTimeout(resolve, 1000 * (error.retryAfter ?? 1)));
        await Promise.all([this.page.engine.whenReady(signal), pause]);
        signal.throwIfAborted();
      }
    }
  }

  #request() {
    return { ...this.parameters, preview_every: Math.max(1, Math.ceil((this.parameters.steps ?? 0) / PREVIEWS)) };
  }

  async #handle(event) {
    if (event.attempt > this.#attempt) {
      this.#attempt = event.attempt;
      this.#isDrawing = false;
      this.#countdown = null;
      this.page.announce("The engine restarted, starting over.");
    }
    const what = event.type.replace(/^image_(generation|edit)\./, "");
    if (what === "accepted") this.#accepted(event);
    else if (what === "progress") this.#progressed(event);
    else if (what === "partial_image") this.#show(event, "jpeg", "preview");
    else if (what === "completed") await this.#completed(event);
  }

  #accepted({ position, estimated_s }) {
    const isAnew = !this.#countdown || position > this.#position; // others go first now
    this.#position = position;
    const status = position ? `In the queue behind ${plural(position, "picture")}` : "Starting";
    this.#expect(estimated_s, status, isAnew ? new Countdown() : this.#countdown);
    this.#showBar(null);
  }

  #progressed({ step, steps, estimated_s }) {
    const isStepping = step < steps;
    const count = this.tiles.length;
    const ofAll = count > 1 ? ` · ${count} pictures of ${plural(steps / count, "step")}` : "";
    const status = isStepping ? `Step ${step} of ${steps}${ofAll}` : "Finishing";
    this.#expect(estimated_s, status, this.#countdown ?? new Countdown(), isStepping);
    const left = this.#countdown.left(now());
    if (!this.#isDrawing) this.page.announce(left ? `Drawing, about ${duration(left)} left.` : "Drawing.");
    this.#isDrawing = true;
    this.#showBar(step / steps);
    for (const tile of this.tiles) tile.style.setProperty("--blur", `${(1 - step / steps) * 6}px`);
  }

  #expect(seconds, status, countdown, isStepping = false) {
    countdown.hear(seconds, now(), { isStepping });
    this.#say(status, countdown);
  }

  async #completed(event) {
    const { index, seed, size, output_format: format, timings, computed, warnings } = event;
    const { made_for: ofLoras, request_id: requestId } = event;
    if (this.#done.has(index)) return;
    this.#done.add(index);
    this.#warnings = warnings ?? [];
    this.parameters.seed ??= seed - index; // which was drawn: if the rest has to be tried again, it is the same
    const blob = this.#show(event, format, "done");
    const [width, height] = size.split("x").map(Number);
    const { n, output_format, image, mask, ...own } = this.parameters;
    const decided = Object.entries(ofLoras ?? {}).filter(([, value]) => value !== null);
    const parameters = { ...own, width, height, seed, ...Object.fromEntries(decided) };
    if (image) Object.assign(parameters, { image: { ...image, file: undefined }, mask: mask && true });
    const start = image && { image, mask };
    const seconds = timings?.total;
    const kept = computed && { block_evaluations: computed.block_evaluations, of: computed.of }; // not each step
    const picture = { blob, format, parameters, start, seconds, computed: kept, warnings: this.#warnings, requestId };
    await this.page.onPicture(picture);
  }

  #finish() {
    this.page.announce(`Finished ${plural(this.#done.size, "picture")}.`);
    if (!this.#warnings.length) return this.#close();
    warned?.#close({ focus: false });
    warned = this;
    this.#end(shortWarning(this.#warnings));
  }

  #fail(error) {
    if (this.page.onFieldError(error)) return this.#close({ focus: false });
    if (error.status === 0 || error.status === 503) this.page.engine.check();
    if (error.code === "moderation_blocked") this.#withhold();
    this.#end(reasonOf(error));
  }

  /** Show that there are no pixels, in place of previews of what was not let out. */
  #withhold() {
    this.card.classList.add("withheld");
    for (const [index, tile] of this.tiles.entries()) {
      tile.hidden = this.#done.has(index);
      URL.revokeObjectURL(tile.image.src);
      tile.image.removeAttribute("src");
      tile.image.hidden = true;
      delete tile.dataset.state;
    }
  }

  #cancel() {
    this.#stop.abort();
    this.#stop = null;
    const count = this.#done.size;
    const kept = count ? ` ${plural(count, "finished picture")} ${count === 1 ? "is" : "are"} kept below.` : "";
    this.#end({ short: `You cancelled this.${kept}`, kind: "cancelled" });
  }

  /** Show what came of it in place of its progress. */
  #end(told) {
    this.card.classList.add("ended");
    tell(this.#part("told"), told);
    this.#part("retry").hidden = told.kind === "warning";
    this.#part("cancel").textContent = "Dismiss";
    this.#say("");
  }

  /** Take the card away. */
  #close({ focus = true } = {}) {
    if (warned === this) warned = null;
    const hadFocus = this.card.contains(document.activeElement);
    this.card.remove();
    for (const tile of this.tiles) URL.revokeObjectURL(tile.image.src);
    if (hadFocus && focus) document.getElementById("prompt").focus();
  }

  #part(name) {
    return this.card.querySelector(`.job-${name}`);
  }

  #addTile() {
    const tile = document.getElementById("tile-template").content.firstElementChild.cloneNode(true);
    const { width, height, image, outpaint } = this.parameters;
    tile.style.aspectRatio = (width && height ? [width, height] : sizeWith(image, outpaint)).join(" / ");
    tile.image = tile.querySelector("img");
    this.card.querySelector(".tiles").append(tile);
    return tile;
  }

  #show({ index, b64_json }, format, state) {
    const blob = new Blob([Uint8Array.from(atob(b64_json), (c) => c.charCodeAt(0))], { type: `image/${format}` });
    const tile = this.tiles[index];
    if (!tile || (state === "preview" && this.#done.has(index))) return blob;
    const before = tile.image.src;
    tile.image.src = URL.createObjectURL(blob);
    if (before) URL.revokeObjectURL(before);
    tile.image.hidden = tile.hidden = false;
    tile.dataset.state = state;
    return blob;
  }

  #say(status, countdown = null) {
    this.#status = status;
    this.#countdown = countdown;
    this.#showStatus();
  }

  #showStatus() {
    const again = this.#attempt > 1 && this.#status ? "The engine restarted, starting over · " : "";
    this.#part("state").textContent = again + this.#status;
    this.#part("time").textContent = this.#countdown?.text(now()) ?? "";
  }

  /** `done` from 0 to 1; null while nobody knows. */
  #showBar(done) {
    const bar = this.card.querySelector(".bar");
    bar.classList.toggle("unknown", done === null);
    if (done === null) bar.removeAttribute("aria-valuenow");
    else bar.setAttribute("aria-valuenow", Math.round(done * 100));
    bar.firstElementChild.style.transform = `scaleX(${done ?? 0})`;
  }
}
