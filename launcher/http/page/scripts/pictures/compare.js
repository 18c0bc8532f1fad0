// Two pictures, side by side or one over the other, and in what their settings differ.

import { before } from "../source/source.js";
import { guidedOf, startOf } from "../text.js";
import { fit } from "./pixels.js";

const SETTINGS = [
  ["Prompt", ({ parameters }) => parameters.prompt],
  ["Negative prompt", ({ parameters }) => parameters.negative_prompt],
  ["Size", ({ parameters }) => `${parameters.width} × ${parameters.height}`],
  ["Steps", ({ parameters }) => parameters.steps],
  ["Guidance", ({ parameters }) => parameters.guidance],
  ["Guided", ({ parameters }) => guidedOf(parameters)],
  ["Step caching", ({ parameters }) => parameters.cache],
  ["Sigmas", ({ parameters }) => (parameters.sigmas ?? []).join(", ")],
  ["Mu", ({ parameters }) => parameters.mu],
  ["Seed", ({ parameters }) => parameters.seed],
  ["LoRAs", ({ parameters }) => (parameters.loras ?? []).map(({ name, strength }) => `${name} ${strength}`).join(", ")],
  ["Started from", ({ parameters }) => startOf(parameters).join(", ")],
  ["File format", ({ format }) => format.toUpperCase()],
];

const element = (id) => document.getElementById(id);

export class Comparison {
  #opener = null;
  #before = null; // the address of what a picture started from

  constructor() {
    this.dialog = element("compare");
    for (const side of ["a", "b"]) fit(element(`compare-${side}`), element(`compare-frame-${side}`));
    fit(element("compare-below"), element("compare-frame"), element("compare-box"));
    for (const view of ["sides", "slider"]) element(`compare-as-${view}`).addEventListener("change", () => this.#view());
    element("compare-at").addEventListener("input", () => this.#cut());
    element("compare-close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("close", () => {
      if (this.#before) URL.revokeObjectURL(this.#before);
      this.#before = null;
      this.#opener?.focus();
    });
  }

  /** Compare pictures `a` and `b`; `opener` has the keyboard afterwards. */
  open(a, b, opener) {
    this.#show(a, b, opener);
    this.#list(a, b);
    this.dialog.showModal();
  }

  /** Show what a picture started from over it; `opener` has the keyboard afterwards. */
  async openBefore(picture, opener) {
    const { width, height, outpaint } = picture.parameters;
    this.#before = URL.createObjectURL(await before(picture.start.image, outpaint, [width, height]));
    element("compare-as-slider").checked = true;
    this.#show({ url: this.#before, parameters: { prompt: picture.start.image.name } }, picture, opener);
    element("compare-table").hidden = true;
    element("compare-same").textContent = `Left: before, ${picture.start.image.name}. Right: after.`;
    this.dialog.showModal();
    element("compare-at").focus();
  }

  #show(a, b, opener) {
    this.#opener = opener;
    for (const [id, { url, parameters }] of [["a", a], ["b", b], ["below", a], ["above", b]]) {
      Object.assign(element(`compare-${id}`), { src: url, alt: parameters.prompt });
    }
    element("compare-at").value = 50;
    this.#cut();
    this.#view();
  }

  #view() {
    element("compare-sides").hidden = !element("compare-as-sides").checked;
    element("compare-frame").hidden = !element("compare-as-slider").checked;
  }

  #cut() {
    element("compare-box").style.setProperty("--at", `${element("compare-at").value}%`);
  }

  #list(a, b) {
    const rows = [];
    const same = [];
    for (const [name, read] of SETTINGS) {
      const values = [a, b].map((picture) => String(read(picture) ?? ""));
      if (values[0] !== values[1]) rows.push(row(name, ...values));
      else if (values[0]) same.push(name.toLowerCase().replace("loras", "LoRAs"));
    }
    element("compare-rows").replaceChildren(...rows);
    element("compare-table").hidden = rows.length === 0;
    const theSame = rows.length ? `The same: ${same.join(", ")}.` : "All their settings are the same.";
    element("compare-same").textContent = same.length ? theSame : "";
  }
}

function row(name, a, b) {
  const line = document.createElement("tr");
  const head = Object.assign(document.createElement("th"), { scope: "row", textContent: name });
  line.append(head, cell(a, b), cell(b, a));
  return line;
}

/** A value; if it has words in common with the other one, its own are marked. */
function cell(value, other) {
  const item = document.createElement("td");
  const words = (text) => text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  const known = new Set(words(other));
  const isAlike = words(value).some((word) => known.has(word));
  for (const piece of (value || "none").split(/([\p{L}\p{N}]+)/u)) {
    const isOwn = isAlike && words(piece).some((word) => !known.has(word));
    item.append(isOwn ? Object.assign(document.createElement("mark"), { textContent: piece }) : piece);
  }
  return item;
}
