// Whether the engine can draw, asked again and again: seldom while it can and has nothing to do.

import { fetchReadiness } from "./api.js";

const POLL_MS = { ready: 15_000, busy: 3_000, starting: 2_000, unreachable: 4_000 };
const BANNERS = {
  starting: "The engine is starting. Pictures you ask for now are made as soon as it is ready.",
  unreachable: "The server cannot be reached. Trying again…",
  gone: "The server is gone: it does not answer any more. Your pictures stay in this browser. Trying again…",
};

export class EngineState {
  #timer = null;
  #checks = 0;
  #waiting = new Set();
  #hasAnswered = false;

  /** `onReadiness` gets all that `fetchReadiness` finds. */
  constructor(banner, onReadiness) {
    this.banner = banner;
    this.onReadiness = onReadiness;
    this.check();
  }

  /** Ask now, and then from time to time. */
  async check() {
    const check = ++this.#checks;
    clearTimeout(this.#timer);
    const readiness = await fetchReadiness();
    if (check !== this.#checks) return; // a later one will tell
    const { state, running, waiting } = readiness;
    this.#hasAnswered ||= state !== "unreachable";
    this.banner.hidden = state === "ready";
    const text = BANNERS[state === "unreachable" && this.#hasAnswered ? "gone" : state] ?? "";
    if (this.banner.textContent !== text) this.banner.textContent = text; // else it would be read out again
    this.onReadiness(readiness);
    if (state === "ready") {
      for (const resolve of this.#waiting) resolve();
      this.#waiting.clear();
    }
    this.#timer = setTimeout(() => this.check(), POLL_MS[running || waiting ? "busy" : state]);
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
