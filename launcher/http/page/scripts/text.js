// Small pieces of text: durations, sizes, file names.

/** "8 s", "3 min", "2 h" of a number of seconds. */
export function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 90 * 60 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

export const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

/** `text` with a full stop, unless it has an end. */
export const sentence = (text) => (/[.!?…]$/.test(text) ? text : `${text}.`);

/** One line about how a picture was made: size, steps, guidance, step caching, seed, LoRAs, and what it started from. */
export function settingsLine({ width, height, steps, guidance, cache, seed, loras, ...rest }) {
  const parts = [`${width} × ${height}`];
  if (steps !== undefined) parts.push(plural(steps, "step"));
  if (guidance) parts.push(`guidance ${guidance}`);
  if (guidance && guidedOf(rest)) parts.push(`guided ${guidedOf(rest)}`);
  if (cache) parts.push(`${cache} cache`);
  parts.push(`seed ${seed}`);
  const short = parts.map((part) => part.replaceAll(" ", "\u00a0")); // no line break inside a part
  return [...short, ...(loras ?? []).map(({ name, strength }) => `${name} ${strength}`), ...startOf(rest)].join(" · ");
}

/** "0.1 to 0.7", of the steps that are guided; "" for all. */
export function guidedOf({ guidance_from: from, guidance_until: until }) {
  return from === undefined && until === undefined ? "" : `${from ?? 0} to ${until ?? 1}`;
}

/** "computed 216 of 480 blocks (45 %)", of a picture whose steps were not all computed. */
export function computedOf({ block_evaluations: ran, of: all }) {
  return `computed ${ran} of ${all} blocks (${Math.round((100 * ran) / all)} %)`;
}

/** What a picture started from, in parts: "from fox.jpg", "strength 0.6", "mask", "left +256". */
export function startOf({ image, mask, strength, outpaint }) {
  if (!image) return [];
  const added = Object.entries(outpaint ?? {}).filter(([, pixels]) => pixels);
  const parts = [`from ${shorten(image.name)}`, `strength ${strength}`, ...(mask ? ["mask"] : [])];
  return [...parts, ...added.map(([side, pixels]) => `${side} +${pixels}`)];
}

/** "a-red-circle-on-a-blue-background-7.png": safe on every file system. */
export function fileName({ prompt, seed }, format) {
  return `${nameOf(prompt)}-${seed}.${format === "jpeg" ? "jpg" : format}`;
}

/** "a-green-triangle-left-of…12.png": its beginning and its end. */
const shorten = (name) => (name.length > 32 ? `${name.slice(0, 24)}…${name.slice(-7)}` : name);

/** "fox-mask.png" of "fox.jpg". */
export const maskName = (name) => `${name.replace(/\.\w+$/, "")}-mask.png`;

/** "a-red-circle-on-a-blue-background": the first words of a prompt, which no shell changes. */
export function nameOf(prompt) {
  const name = [];
  let length = 0;
  for (const word of prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? []) {
    length += word.length + 1;
    if (length > 61) break;
    name.push(word);
  }
  return name.join("-") || "picture";
}
