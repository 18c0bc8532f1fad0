// The view in which a mask is painted over a picture: with a mouse, a pen, a finger, or the keyboard.

import { Pinch } from "./pinch.js";

const TINT = "#ff2d87";
const SMALL = 320; // pixels of the longer side; larger pictures look better smoothed
const MAX_ZOOM = 16; // times as large as fits
const SIZES = { min: 1, max: 50, usual: 8 }; // of the brush, in percent of the picture's longer side
const GROWTH = 1.2;

const element = (id) => document.getElementById(id);
const within = (low, value, high) => Math.max(low, Math.min(value, high));

/** Show on `canvas` what `mask` has, over a picture that is shown by as many pixels as `sheet` has. */
export function showMask(canvas, sheet, mask) {
  [canvas.width, canvas.height] = [sheet.width, sheet.height];
  mask.draw(canvas, TINT);
}

export class Painter {
  #mask = null;
  #source = null;
  #fit = 1; // the screen's pixels for one of the picture's, as it fits
  #zoom = 1;
  #at = null; // where the brush is, in the picture's pixels
  #stroke = null; // the pointer that paints
  #pinch = new Pinch((by, x, y, across, down) => this.#move(by, x, y, across, down));
  #closed = null;

  constructor() {
    this.dialog = element("painter");
    this.stage = element("painter-stage");
    this.sheet = element("painter-sheet");
    this.size = element("painter-size");
    Object.assign(this.size, { ...SIZES, value: SIZES.usual });
    const on = (name, action) => element(`painter-${name}`).addEventListener("click", action);
    on("undo", () => this.#change("undo"));
    on("redo", () => this.#change("redo"));
    on("clear", () => this.#change("clear"));
    on("invert", () => this.#change("invert"));
    on("in", () => this.#zoomBy(1.5));
    on("out", () => this.#zoomBy(1 / 1.5));
    on("done", () => this.dialog.close());
    for (const name of ["size", "brush", "erase"]) element(`painter-${name}`).addEventListener("input", () => this.#showBrush());
    this.dialog.addEventListener("keydown", (event) => this.#pressed(event));
    this.dialog.addEventListener("close", () => this.#closed?.());
    new ResizeObserver(() => this.#source && this.#place()).observe(this.stage);
    this.stage.addEventListener("wheel", (event) => this.#wheeled(event), { passive: false });
    this.#listenToPointers();
  }

  /** Let the user paint on `mask`, over a picture as `openSource` gives it. Resolves when it is done. */
  open(source, mask) {
    [this.#source, this.#mask, this.#zoom, this.#stroke] = [source, mask, 1, null];
    this.#at = [source.width / 2, source.height / 2];
    const canvas = element("painter-picture");
    [canvas.width, canvas.height] = [source.sheet.width, source.sheet.height];
    canvas.getContext("2d").drawImage(source.sheet, 0, 0);
    this.sheet.classList.toggle("pixels", Math.max(source.width, source.height) <= SMALL);
    element("painter-brush").checked = true;
    this.dialog.showModal();
    this.#place();
    this.#show();
    this.sheet.focus();
    return new Promise((resolve) => (this.#closed = resolve));
  }

  get #radius() {
    const longer = Math.max(this.#source.width, this.#source.height);
    return Math.max(1, (this.size.valueAsNumber / 200) * longer);
  }

  #listenToPointers() {
    this.sheet.addEventListener("pointerdown", (event) => {
      if (event.button > 0) return;
      this.sheet.setPointerCapture(event.pointerId);
      if (this.#pinch.begin(event)) {
        this.#drop(); // a second finger has come: they move the picture
      } else if (this.#stroke === null) {
        this.#stroke = event.pointerId;
        this.#paint([this.#point(event)], { begins: true });
      }
    });
    this.sheet.addEventListener("pointermove", (event) => {
      if (this.#pinch.go(event)) return;
      if (event.pointerId === this.#stroke) {
        const all = event.getCoalescedEvents?.() ?? [];
        this.#paint((all.length ? all : [event]).map((each) => this.#point(each)), { begins: false });
      } else if (this.#stroke === null) {
        this.#at = this.#point(event);
        this.#showBrush();
      }
    });
    for (const kind of ["pointerup", "pointercancel"]) {
      this.sheet.addEventListener(kind, (event) => {
        this.#pinch.end(event);
        if (event.pointerId !== this.#stroke) return;
        if (kind === "pointercancel") return this.#drop();
        this.#stroke = null;
        this.#tell();
      });
    }
  }

  /** Where a pointer is, in the picture's pixels. */
  #point({ clientX, clientY }) {
    const { left, top, width } = this.sheet.getBoundingClientRect();
    const scale = this.#source.width / width;
    return [scale * (clientX - left), scale * (clientY - top)];
  }

  #paint(points, { begins }) {
    if (begins) this.#mask.begin(...points[0], this.#radius, element("painter-erase").checked);
    const had = begins ? 0 : this.#mask.length;
    for (const point of begins ? points.slice(1) : points) this.#mask.go(...point);
    this.#mask.drawOn(element("painter-mask"), TINT, had);
    this.#at = points.at(-1);
    this.#showBrush();
  }

  /** Forget the stroke that is being painted. */
  #drop() {
    if (this.#stroke === null) return;
    this.#stroke = null;
    this.#mask.drop();
    this.#show();
  }

  #change(what) {
    this.#mask[what]();
    this.#show();
  }

  #show() {
    showMask(element("painter-mask"), this.#source.sheet, this.#mask);
    this.#tell();
    this.#showBrush();
  }

  /** Say how much is painted. */
  #tell() {
    const share = 100 * this.#mask.share();
    const painted = share && share < 1 ? "Less than 1 %" : `${Math.round(share)} %`;
    element("painter-told").textContent = share ? `${painted} is painted.` : "Paint what is to be drawn anew.";
    for (const [name, can] of [["undo", this.#mask.canUndo], ["redo", this.#mask.canRedo], ["clear", share > 0]]) {
      const button = element(`painter-${name}`);
      if (!can && button === document.activeElement) this.sheet.focus(); // a disabled button would lose the keyboard
      button.disabled = !can;
    }
  }

  #showBrush() {
    const ring = element("painter-ring");
    const scale = this.#fit * this.#zoom;
    const [x, y] = this.#at;
    ring.style.width = ring.style.height = `${2 * scale * this.#radius}px`;
    ring.style.left = `${scale * x}px`;
    ring.style.top = `${scale * y}px`;
    ring.classList.toggle("erases", element("painter-erase").checked);
  }

  #place() {
    const { width, height } = this.#source;
    this.#fit = Math.min((this.stage.clientWidth - 24) / width, (this.stage.clientHeight - 24) / height);
    this.sheet.style.width = `${this.#fit * this.#zoom * width}px`;
    this.sheet.style.height = `${this.#fit * this.#zoom * height}px`;
    element("painter-out").disabled = this.#zoom === 1;
    element("painter-in").disabled = this.#zoom === MAX_ZOOM;
    this.#showBrush();
  }

  #zoomBy(factor) {
    const { left, top, width, height } = this.stage.getBoundingClientRect();
    this.#move(factor, left + width / 2, top + height / 2);
  }

  /** Enlarge the picture, while what is at a point of the screen stays there or moves by some pixels. */
  #move(factor, x, y, across = 0, down = 0) {
    const before = this.sheet.getBoundingClientRect();
    const [right, below] = [(x - before.left) / before.width, (y - before.top) / before.height];
    this.#zoom = within(1, this.#zoom * factor, MAX_ZOOM);
    this.#place();
    const after = this.sheet.getBoundingClientRect();
    this.stage.scrollLeft += after.left + right * after.width - x - across;
    this.stage.scrollTop += after.top + below * after.height - y - down;
  }

  #wheeled(event) {
    if (!event.ctrlKey && !event.metaKey) return; // which scrolls
    event.preventDefault();
    this.#move(Math.exp(-event.deltaY / 300), event.clientX, event.clientY);
  }

  #pressed(event) {
    const { key, ctrlKey, metaKey, shiftKey, altKey, target } = event;
    const done = this.#shortcut(key, { isCommand: ctrlKey || metaKey, shiftKey, altKey, isOnSheet: target === this.sheet });
    if (done) event.preventDefault();
  }

  #shortcut(key, { isCommand, shiftKey, altKey, isOnSheet }) {
    if (altKey) return false;
    const letter = key.toLowerCase();
    if (isCommand && letter === "z") return this.#change(shiftKey ? "redo" : "undo"), true;
    if (isCommand && letter === "y") return this.#change("redo"), true;
    if (isCommand) return false;
    if (key === "[" || key === "]") return this.#resize(key === "]" ? GROWTH : 1 / GROWTH), true;
    if (key === "+" || key === "-") return this.#zoomBy(key === "+" ? 1.5 : 1 / 1.5), true;
    if (letter === "b" || letter === "e") return this.#choose(letter === "b" ? "brush" : "erase"), true;
    return isOnSheet && this.#steer(key, shiftKey);
  }

  #resize(factor) {
    this.size.value = within(SIZES.min, this.size.valueAsNumber * factor, SIZES.max);
    this.#showBrush();
  }

  #choose(tool) {
    element(`painter-${tool}`).checked = true;
    this.#showBrush();
  }

  /** Move the brush with the arrows, which paint with Shift; Space puts a dot. */
  #steer(key, paints) {
    const [across, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key] ?? [0, 0];
    const isMove = across !== 0 || down !== 0;
    if (!isMove && key !== " ") return false;
    const { width, height } = this.#source;
    const [from, far] = [this.#at, this.#radius];
    const to = [within(0, from[0] + far * across, width), within(0, from[1] + far * down, height)];
    if (isMove && !paints) {
      this.#at = to;
      this.#showBrush();
    } else {
      this.#paint(isMove ? [from, to] : [from], { begins: true });
      this.#tell();
    }
    const ring = element("painter-ring");
    ring.scrollIntoView({ block: "nearest", inline: "nearest" });
    return true;
  }
}
