// What the server answered: its status and headers, JSON with its pictures shown, and events as they come.

import { plural } from "../text.js";

const TOLD = ["Content-Type", "X-Request-ID", "Retry-After", "Idempotent-Replayed", "Allow", "WWW-Authenticate"];
const BASE64 = /(data:image\/[a-z]+;base64,)?([A-Za-z0-9+/]{160,}={0,2})/g; // also within a text, as chats have it
const SHOWN = 40; // characters of it
const PICTURES = [["iVBORw0KGgo", "png"], ["/9j/", "jpeg"], ["UklGR", "webp"]]; // how base64 of each kind begins

export class Answer {
  #box;
  #status;
  #began = 0;
  #said = "";
  #events = 0;
  #list = null;
  #pieces = "";

  constructor(box, status) {
    this.#box = box;
    this.#status = status;
  }

  /** A request is sent: forget the last answer. */
  begin() {
    for (const picture of this.#box.querySelectorAll("img")) URL.revokeObjectURL(picture.src);
    this.#box.replaceChildren();
    [this.#began, this.#events, this.#list] = [performance.now(), 0, null];
    this.#said = this.#pieces = "";
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
    if (!this.#box.querySelector("img")) for (const source of picturesIn(this.#pieces)) this.addPicture(source);
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
    for (const { delta } of fields.choices ?? []) this.#pieces += delta?.content ?? ""; // of a chat
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
    const texts = [];
    const shown = JSON.stringify(value, (_, item) => (typeof item === "string" ? (texts.push(item), shorten(item)) : item), 2);
    for (const source of texts.flatMap(picturesIn)) this.addPicture(source, box);
    box.append(code(shown));
  }

  #add(tag, className, text = "") {
    const element = tag === "pre" ? code(text) : document.createElement(tag);
    if (className) element.classList.add(className);
    this.#box.append(element);
    return element;
  }
}

/** The sources of the pictures that a text has, or is. */
function picturesIn(text) {
  if (text.startsWith(`${location.origin}/`) && /\.(png|jpeg|webp)$/.test(text)) return [text];
  const sources = [];
  for (const [, prefix, file] of text.matchAll(BASE64)) {
    const kind = PICTURES.find(([start]) => file.startsWith(start))?.[1];
    if (prefix || kind) sources.push(`${prefix ?? `data:image/${kind};base64,`}${file}`);
  }
  return sources;
}

/** Cut base64. */
function shorten(text) {
  return text.replace(BASE64, (all, prefix = "", file) => `${prefix}${file.slice(0, SHOWN)}… (${file.length} characters)`);
}

function code(text) {
  const element = Object.assign(document.createElement("pre"), { tabIndex: 0 });
  element.append(Object.assign(document.createElement("code"), { textContent: text }));
  return element;
}
