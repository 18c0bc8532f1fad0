// What the server answered: its status and headers, JSON with its pictures shown, and events as they come.

import { plural } from "../text.js";

const TOLD = ["Content-Type", "X-Request-ID", "Retry-After", "Idempotent-Replayed", "Allow", "WWW-Authenticate"];
const LONG = 160; // characters without a space, of which as many as SHOWN are shown
const SHOWN = 40;
const PICTURES = [["iVBORw0KGgo", "png"], ["/9j/", "jpeg"], ["UklGR", "webp"]]; // how base64 of each kind begins

export class Answer {
  #box;
  #status;
  #began = 0;
  #said = "";
  #events = 0;
  #list = null;

  constructor(box, status) {
    this.#box = box;
    this.#status = status;
  }

  /** A request is sent: forget the last answer. */
  begin() {
    for (const picture of this.#box.querySelectorAll("img")) URL.revokeObjectURL(picture.src);
    this.#box.replaceChildren();
    [this.#began, this.#events, this.#list] = [performance.now(), 0, null];
    this.#said = "";
    this.#status.textContent = "Waiting for the answer…";
    delete this.#status.dataset.kind;
  }

  /** Its status and headers have come. */
  start(response) {
    this.#said = `${response.status} ${response.statusText}`.trim();
    this.#status.textContent = `${this.#said}…`;
    this.#status.dataset.kind = response.ok ? "done" : "failed";
    const headers = TOLD.filter((name) => response.headers.has(name));
    this.#add("pre", "headers", headers.map((name) => `${name}: ${response.headers.get(name)}`).join("\n"));
  }

  /** All of it has come. */
  end() {
    const seconds = ((performance.now() - this.#began) / 1000).toFixed(2);
    const events = this.#list ? `, ${plural(this.#events, "event")}` : "";
    this.#status.textContent = `${this.#said}, ${seconds} s${events}`;
  }

  fail(reason) {
    this.#status.textContent = this.#said ? `${this.#said}. ${reason}` : reason;
    this.#status.dataset.kind = "failed";
  }

  addText(text, isJson) {
    let value = null;
    try {
      if (isJson) value = JSON.parse(text);
    } catch {
      // which is shown as it came
    }
    if (value === null) this.#add("pre", "", text || "(an empty body)");
    else this.#addJson(value, this.#box);
  }

  addEvent({ type, ...fields }) {
    this.#list ??= this.#add("ol", "events");
    this.#list.tabIndex = 0;
    this.#list.setAttribute("aria-label", "Events");
    this.#events += 1;
    const item = document.createElement("li");
    item.append(Object.assign(document.createElement("code"), { textContent: type || "data" }));
    this.#list.append(item);
    this.#addJson(fields, item);
    this.#list.scrollTop = this.#list.scrollHeight;
  }

  addPicture(source, box = this.#box) {
    const picture = Object.assign(document.createElement("img"), { src: source, alt: "A picture of the answer" });
    const link = Object.assign(document.createElement("a"), { href: source, download: "" });
    link.append(picture);
    box.append(link);
  }

  #addJson(value, box) {
    const sources = [];
    const shown = JSON.stringify(value, (_, item) => (typeof item === "string" ? shorten(item, sources) : item), 2);
    for (const source of sources) this.addPicture(source, box);
    box.append(code(shown));
  }

  #add(tag, className, text = "") {
    const element = tag === "pre" ? code(text) : document.createElement(tag);
    if (className) element.classList.add(className);
    this.#box.append(element);
    return element;
  }
}

/** Cut base64; the source of each picture that a text is goes to `sources`. */
function shorten(text, sources) {
  const kind = PICTURES.find(([start]) => text.startsWith(start))?.[1];
  if (kind && text.length > LONG) sources.push(`data:image/${kind};base64,${text}`);
  else if (text.startsWith("data:image/")) sources.push(text);
  else if (text.startsWith(`${location.origin}/`) && /\.(png|jpeg|webp)$/.test(text)) sources.push(text);
  const isCut = text.length > LONG && /^\S+$/.test(text);
  return isCut ? `${text.slice(0, SHOWN)}… (${text.length} characters)` : text;
}

function code(text) {
  const element = Object.assign(document.createElement("pre"), { tabIndex: 0 });
  element.append(Object.assign(document.createElement("code"), { textContent: text }));
  return element;
}
