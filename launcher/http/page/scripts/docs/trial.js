// A form that sends one request, and shows what is answered.

import { readEvents, RequestError, withKey } from "../api.js";
import { Answer } from "./answer.js";
import { follow } from "./snippets.js";

export class Trial {
  #form;
  #root;
  #answer;
  #stop;
  #running = null;

  /** root: the URL under which the server's paths are. */
  constructor(form, root) {
    this.#form = form;
    this.#root = root;
    this.#answer = new Answer(form.querySelector(".try-answer"), form.querySelector(".try-status"));
    this.#stop = form.querySelector(".stop");
    this.#stop.addEventListener("click", () => this.#running?.abort());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
    const { body } = form.elements;
    form.querySelector(".examples")?.addEventListener("change", (event) => {
      body.value = event.target.value;
      body.rows = body.value.split("\n").length + 1;
      body.dispatchEvent(new Event("input", { bubbles: true }));
    });
    body?.addEventListener("input", () => this.#complain(""));
    form.addEventListener("input", () => this.#follow());
    form.hidden = false;
  }

  async #send() {
    const request = this.#request();
    if (!request) return;
    this.#running?.abort();
    const running = (this.#running = new AbortController());
    this.#stop.hidden = false;
    this.#answer.begin();
    try {
      const response = await fetch(request.url, { ...request.options, signal: running.signal });
      this.#answer.start(response);
      await this.#show(response);
      this.#answer.end();
    } catch (error) {
      if (this.#running === running) this.#answer.fail(reasonOf(error));
    }
    if (this.#running !== running) return; // another was sent in the meantime
    if (document.activeElement === this.#stop) this.#form.querySelector("[type=submit]").focus();
    this.#running = null;
    this.#stop.hidden = true;
  }

  async #show(response) {
    const type = response.headers.get("Content-Type") ?? "";
    if (type.startsWith("text/event-stream")) {
      for await (const event of readEvents(response.body)) this.#answer.addEvent(event);
    } else if (type.startsWith("image/")) {
      this.#answer.addPicture(URL.createObjectURL(await response.blob()));
    } else {
      this.#answer.addText(await response.text(), type.startsWith("application/json"));
    }
  }

  /** Have the snippets ask for what the form says, where that can be sent. */
  #follow() {
    const request = this.#request({ isTold: false });
    if (request) follow(this.#form.closest(".route"), request.url, request.options.body);
  }

  /** What the form says to send; null if it cannot be, which is told
   * unless it is only tried. */
  #request({ isTold = true } = {}) {
    let path = this.#form.dataset.path;
    const [query, headers] = [new URLSearchParams(), {}];
    for (const input of this.#form.querySelectorAll("[data-in]")) {
      const value = input.value.trim();
      const isMissing = input.required && !value;
      if (isMissing && !isTold) return null;
      input.setAttribute("aria-invalid", isMissing);
      if (isMissing) {
        this.#answer.begin();
        this.#answer.fail(`${input.name} is needed.`);
        input.focus();
        return null;
      }
      if (input.dataset.in === "path") path = path.replace(`{${input.name}}`, encodeURIComponent(value));
      else if (value && input.dataset.in === "query") query.set(input.name, value);
      else if (value) headers[input.name] = value;
    }
    const { body } = this.#form.elements;
    if (body) {
      headers["Content-Type"] = "application/json";
      try {
        JSON.parse(body.value);
      } catch (error) {
        if (!isTold) return null;
        this.#answer.begin();
        this.#answer.fail(""); // what was answered before is no answer to this
        this.#complain(`This is not JSON: ${error.message}`);
        body.focus();
        return null;
      }
    }
    const url = new URL(path, this.#root);
    url.search = query;
    const options = { method: this.#form.dataset.method, headers: withKey(headers), body: body?.value, cache: "no-store" };
    return { url, options };
  }

  #complain(text) {
    const line = this.#form.querySelector(".field-error");
    line.hidden = !text;
    line.textContent = text;
    this.#form.elements.body.setAttribute("aria-invalid", Boolean(text));
  }
}

function reasonOf(error) {
  if (error.name === "AbortError") return "Stopped.";
  return error instanceof RequestError ? error.message : "The server cannot be reached.";
}
