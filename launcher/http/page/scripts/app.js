// The page: a form that starts jobs, and a gallery that keeps what they make.

import { fetchLoras, fetchSettings, RequestError } from "./api.js";
import { askForKey } from "./dialogs.js";
import { EngineState } from "./engine_state.js";
import { Form } from "./form/form.js";
import { showSamples } from "./form/samples.js";
import { Gallery } from "./pictures/gallery.js";
import { isAnythingRunning, Job } from "./jobs/job.js";
import { offerCopies } from "./jobs/snippets.js";
import { Comparison } from "./pictures/compare.js";
import { Lightbox } from "./pictures/lightbox.js";
import { Report } from "./pictures/report.js";
import { openStore } from "./pictures/store.js";
import { ServerFacts } from "./server_facts.js";
import { fileName } from "./text.js";
import { showTooltips } from "./tooltip.js";

const RETRY_MS = 2000;
const LOOK_MS = 500; // until the server counts what was asked for, or is done

const element = (id) => document.getElementById(id);

function announce(text) {
  element("announcer").textContent = text;
}

function showFieldError(error) {
  if (error.param === "loras") showLoras(); // others than the form knows of
  return error.param != null && form.showError(error.param, error.message);
}

function start(parameters) {
  if (!settings) loadSettings(); // the user may have a key by now
  const { steps, guidance } = settings?.defaults ?? {}; // which are of the picture, whatever the server's are later
  const all = { ...parameters };
  const own = stepsOfLoras(parameters.loras);
  for (const [name, usual] of Object.entries({ steps, guidance })) {
    if (name === "steps" && (all.sigmas || all.mu !== undefined)) all[name] ??= usual; // which a LoRA's schedule then is not
    else if (!own) all[name] ??= usual;
    else if ([usual, own[name]].includes(all[name])) delete all[name]; // nobody has set it: the LoRA's go with its sigmas
  }
  new Job(all, { engine, announce, onPicture, onFieldError: showFieldError });
  announce("Request sent.");
  setTimeout(() => engine.check(), LOOK_MS);
}

/** What the LoRAs of a picture were made for, where their files say it: such a picture has its steps of them. */
function stepsOfLoras(chosen) {
  const used = (chosen ?? []).filter(({ strength }) => strength !== 0).map(({ name }) => name);
  return [...loras.data.filter(({ name }) => used.includes(name)), ...loras.merged].find((lora) => lora.made_for)?.made_for;
}

function onPicture(picture) {
  form.setLastSeed(picture.parameters.seed);
  setTimeout(() => engine.check(), LOOK_MS);
  return gallery.add(picture);
}

function reuse({ parameters, format, start }) {
  return form.fill({ ...parameters, ...start, output_format: format });
}

function vary(picture) {
  const { parameters, format, start: from } = picture;
  if (parameters.image && !from) return reuse(picture); // which says that what it started from is no longer here
  const size = parameters.image && !parameters.image.sized ? { width: undefined, height: undefined } : {};
  start({ ...parameters, ...size, ...from, n: 1, seed: form.drawSeed(), output_format: format });
}

const startFrom = ({ parameters, format, blob }) => form.startFrom(blob, fileName(parameters, format), parameters.prompt);

let settings = null;
let loras = { data: [], merged: [] };
let loading = null;

/** Fill the form with what the server tells; again and again until it does, or the user has no key for it. */
function loadSettings() {
  loading ??= load().finally(() => (loading = null));
  return loading;
}

async function load() {
  while (!settings) {
    try {
      settings = await fetchSettings();
    } catch (error) {
      if (error.status === 401) {
        if (!(await askForKey(error.message))) return;
      } else {
        await Promise.all([engine.whenReady(), new Promise((resolve) => setTimeout(resolve, RETRY_MS))]);
      }
    }
  }
  form.apply(settings);
  lightbox.offerReports(settings.reports);
  showSamples(settings, (sample) => form.draw(sample));
  element("model").textContent = settings.model;
  document.title = `Krea 2 – ${settings.model}`;
}

let wasGone = false;

function onReadiness(readiness) {
  facts.show(readiness);
  const isGone = readiness.state === "unreachable";
  if (wasGone && !isGone && settings) {
    settings = null; // the server may be another by now
    loadSettings();
  }
  wasGone = isGone;
}

/** Offer the LoRAs that the server has now. */
async function showLoras() {
  try {
    loras = await fetchLoras();
    form.showLoras(loras.data);
  } catch (error) {
    if (!(error instanceof RequestError)) throw error; // it starts, or is gone: asked again when somebody looks
  }
}

showTooltips();
const form = new Form(start);
const facts = new ServerFacts();
const engine = new EngineState(element("banner"), onReadiness);
const comparison = new Comparison();
const compare = (...pictures) => comparison.open(...pictures);
const gallery = new Gallery(openStore(), { open: (picture) => lightbox.open(picture), reuse, vary, startFrom, compare });
const before = (picture, button) => comparison.openBefore(picture, button);
const reports = new Report();
const report = (picture, onSent) => reports.open(picture, () => (onSent(), announce("Report sent.")));
const fromGallery = (picture) => gallery.compare(picture);
const lightbox = new Lightbox(gallery, { reuse, vary, startFrom, before, compare: fromGallery, report });
offerCopies(element("form-copies"), () => form.read());
window.addEventListener("focus", showLoras);
window.addEventListener("beforeunload", (event) => isAnythingRunning() && event.preventDefault()); // the browser asks
await Promise.all([gallery.load(), loadSettings()]);
await engine.whenReady();
await showLoras();
