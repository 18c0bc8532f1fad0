// The header: which model the server runs, on what, and how busy it is; on demand, all that is known of it.

import { fetchStatus } from "./api.js";
import { plural, sentence } from "./text.js";

const element = (id) => document.getElementById(id);

export class ServerFacts {
  #readiness = {};
  #status = null; // of /v1/status, which wants a key if the server has some

  constructor() {
    element("server").addEventListener("toggle", ({ newState }) => newState === "open" && this.#ask());
  }

  /** Show what `fetchReadiness` found. */
  show(readiness) {
    const wasReady = this.#readiness.state === "ready";
    this.#readiness = readiness;
    const { state, running, waiting, stage } = readiness;
    const loaded = stage?.name === "loading" && stage.total ? stage.done / stage.total : 0;
    element("load").dataset.state = running || waiting ? "busy" : state;
    element("load").style.setProperty("--loaded", `${100 * loaded}%`);
    element("load-text").textContent = this.#now();
    const isOpen = element("server").matches(":popover-open");
    if (state === "ready" && (!wasReady || isOpen)) this.#ask();
    else if (isOpen) this.#list();
  }

  /** Ask for what needs a key, now that there may be one. */
  async #ask() {
    this.#status = (await fetchStatus()) ?? this.#status;
    const { device, ranks } = this.#status ?? {};
    element("device").textContent = device ? `on ${device}${ranks > 1 ? ` · ${ranks} ranks` : ""}` : "";
    this.#list();
  }

  /** What it does, in a few words. */
  #now() {
    const { state, running, waiting, stage } = this.#readiness;
    if (state === "unreachable") return "Not reachable";
    if (state === "starting") return stage ? inWords(stage) : "Starting";
    const parts = [];
    if (running) parts.push(`${running} drawing`);
    if (waiting) parts.push(`${waiting} waiting`);
    return parts.join(" · ") || "Ready";
  }

  #list() {
    const { state, reason } = this.#readiness;
    const status = this.#status;
    const facts = [["Server", location.host]];
    if (status) facts.push(["Engine", `krea2-engine ${status.version}`], ["Model", status.model]);
    if (status?.device) facts.push(["Device", status.device]);
    if (status?.ranks > 1) facts.push(["Ranks", `${status.ranks}, ${split(status)}`]);
    facts.push(["Now", state === "starting" && reason ? sentence(reason) : this.#now()]);
    if (status) {
      facts.push(["So far", `${plural(status.done, "request")} done, ${status.failed} failed, in ${age(status.uptime_s)}`]);
      if (status.restarts) facts.push(["Restarts", status.restarts]);
      for (const [rank, purposes] of status.rank_memory.entries()) {
        facts.push([`Memory${status.ranks > 1 ? ` of rank ${rank}` : ""}`, memory(purposes)]);
      }
      for (const gpu of status.quarantined) facts.push(["Not used", gpu]);
    }
    element("server-facts").replaceChildren(...facts.flatMap(([name, value]) => [cell("dt", name), cell("dd", value)]));
  }
}

function inWords({ name, done, total }) {
  const loaded = name === "loading" && total ? ` ${Math.floor((100 * done) / total)} %` : "";
  return name[0].toUpperCase() + name.slice(1) + loaded;
}

function split({ tp, sp, cfg_parallel }) {
  const degrees = Object.entries({ tp, sp }).filter(([, degree]) => degree > 1);
  return [...degrees.map(([name, degree]) => `--${name} ${degree}`), ...(cfg_parallel ? ["--cfg-parallel"] : [])].join(" ");
}

/** What the rank's weights took, and what was free for steps when they were loaded. */
function memory({ weights, host_weights, free }) {
  const parts = [];
  if (weights) parts.push(`${size(weights)} weights`);
  if (host_weights) parts.push(`${size(host_weights)} in host memory`);
  if (free) parts.push(`${size(free)} free for steps`);
  return parts.join(", ") || "not known";
}

function size(bytes) {
  return bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${Math.ceil(bytes / 1e6)} MB`;
}

function age(seconds) {
  if (seconds < 5400) return plural(Math.max(1, Math.round(seconds / 60)), "minute");
  if (seconds < 2 * 86400) return plural(Math.round(seconds / 3600), "hour");
  return plural(Math.round(seconds / 86400), "day");
}

function cell(kind, text) {
  return Object.assign(document.createElement(kind), { textContent: text });
}
