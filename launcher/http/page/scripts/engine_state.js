// Whether the engine can draw, asked again and again: seldom while it can.

import { fetchReadiness } from "./api.js";

const POLL_MS = { ready: 15_000, starting: 2_000, unreachable: 4_000 };
const BANNERS = {
  starting: "The engine is starting. Pictures you ask for now are made as soon as it is ready.",
  unreachable: "The server cannot be reached. Trying again…",
};

export class EngineState {
  #timer = null;
  #checks = 0;
  #waiting = new Set();

  constructor(banner) {
    this.banner = banner;
    this.check();
  }

  /** Ask now, and then from time to time. */
  async check() {
    const check = ++this.#checks;
    clearTimeout(this.#timer);
    const state = await fetchReadiness();
    if (check !== this.#checks) return; // a later one will tell
    this.banner.hidden = state === "ready";
    const text = BANNERS[state] ?? "";
    if (this.banner.textContent !== text) this.banner.textContent = text; // else it would be read out again
    if (state === "ready") {
      for (const resolve of this.#waiting) resolve();
      this.#waiting.clear();
    }
    this.#timer = setTimeout(() => this.check(), POLL_MS[state]);
  }

  /** Resolves when the engine is ready, and when `signal` is aborted. */
  whenReady(signal) {
    return new Promise((resolve) => {
      this.#waiting.add(resolve);
      signal?.addEventListener("abort", resolve, { once: true });
      this.check();
    });
  }
}
