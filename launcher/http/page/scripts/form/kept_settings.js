// Settings that a reload leaves as they were, kept by this browser for each model. What is read back is not trusted.

const PREFIX = "krea2-settings/";
const MAX_LORAS = 32;
const MAX_MU = 10;
const CACHES = ["off", "quality", "fast"];

const text = (most) => (value) => typeof value === "string" && value.length <= most;
const whole = (low, high) => (value) => Number.isInteger(value) && value >= low && value <= high;
const within = (low, high) => (value) => Number.isFinite(value) && value >= low && value <= high;

/** The settings kept for the server's model, but for those that it does not take, by what it told about itself. */
export function readKept({ model, limits, output_formats, max_lora_strength }) {
  const side = whole(limits.min_side, limits.max_side);
  const strength = within(-max_lora_strength, max_lora_strength);
  const checks = {
    prompt: text(limits.max_prompt_bytes),
    negative_prompt: text(limits.max_prompt_bytes),
    width: side,
    height: side,
    steps: whole(1, limits.max_steps),
    guidance: within(0, limits.max_guidance),
    seed: whole(0, limits.max_seed),
    cache: (value) => CACHES.includes(value),
    guidance_from: within(0, 1),
    guidance_until: within(0, 1),
    sigmas: (value) => Array.isArray(value) && value.length <= limits.max_steps && value.every(within(0, 1)),
    mu: within(-MAX_MU, MAX_MU),
    output_format: (value) => output_formats.includes(value),
    loras: (value) =>
      Array.isArray(value) &&
      value.length <= MAX_LORAS &&
      value.every((lora) => text(1000)(lora?.name) && strength(lora.strength)),
  };
  const read = load(PREFIX + model);
  const kept = Object.fromEntries(Object.entries(checks).flatMap(([name, isGood]) => {
    const value = Object.hasOwn(read, name) ? read[name] : undefined;
    return isGood(value) ? [[name, value]] : [];
  }));
  if (kept.width === undefined || kept.height === undefined) {
    delete kept.width;
    delete kept.height;
  }
  return kept;
}

/** Keep these settings for `model`, in place of those before. */
export function keep(model, settings) {
  try {
    if (Object.keys(settings).length) localStorage.setItem(PREFIX + model, JSON.stringify(settings));
    else localStorage.removeItem(PREFIX + model);
  } catch {
    // the browser keeps nothing for this page, or has no room: the settings last as long as the page
  }
}

function load(key) {
  try {
    return Object(JSON.parse(localStorage.getItem(key)));
  } catch {
    return {};
  }
}
