// The server's HTTP API: settings, LoRAs, readiness, and the events of a request.

const KEY_NAME = "krea2-api-key";

/** What went wrong: `status` of the answer (0 if there was none), `param` the parameter to blame, if one is. */
export class RequestError extends Error {
  constructor(message, { status = 0, param = null, code = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, param, code, retryAfter });
  }
}

/** Send a key with all requests of this tab from now on, or none. */
export function setApiKey(key) {
  if (key) sessionStorage.setItem(KEY_NAME, key);
  else sessionStorage.removeItem(KEY_NAME);
}

/** Whether requests are sent with a key. */
export function usesKey() {
  return sessionStorage.getItem(KEY_NAME) !== null;
}

/** Headers of a request, with the key if there is one. */
export function withKey(more = {}) {
  const key = sessionStorage.getItem(KEY_NAME);
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

/** Paths are relative: a proxy may have put the server below one of its own. */
async function send(path, options) {
  try {
    return await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError("The server cannot be reached.");
  }
}

async function refusal(response) {
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // a proxy's answer, maybe; its status is all there is to tell
  }
  const message = error.message ?? `The server answered ${response.status} ${response.statusText}`.trim();
  return new RequestError(message, { status: response.status, param: error.param, code: error.code, retryAfter });
}

/** The model, its defaults and the limits. Throws `RequestError`. */
export async function fetchSettings() {
  const response = await send("v1/settings", { headers: withKey() });
  if (!response.ok) throw await refusal(response);
  return response.json();
}

/** The LoRAs: `data` those that requests may choose, {name, strength, made_for, …} each, `merged` those in every picture.
 * Throws `RequestError`. */
export async function fetchLoras() {
  const response = await send("v1/loras", { headers: withKey() });
  if (!response.ok) throw await refusal(response);
  return await response.json();
}

/** What the engine runs on and does, as GET /v1/status has it; null if it does not answer, or wants a key. */
export async function fetchStatus() {
  try {
    const response = await send("v1/status", { headers: withKey() });
    return response.ok ? await response.json() : null;
  } catch {
    return null;
  }
}

/**
 * {state, running, waiting, stage, reason}. state: "ready", "starting" (the server is there, its ranks are not) or
 * "unreachable"; running and waiting: how many requests; stage: how far it has started; reason: why it is not ready.
 */
export async function fetchReadiness() {
  try {
    const response = await send("ready", { signal: AbortSignal.timeout(10_000) });
    const { running, waiting, stage, error } = await response.json();
    const state = response.ok ? "ready" : response.status === 503 ? "starting" : "unreachable";
    return { state, running, waiting, stage, reason: error?.message };
  } catch {
    return { state: "unreachable" };
  }
}

/** Report a picture {blob, requestId}, `name` being its file's, with what is wrong and how to reach who says so. */
export async function report({ blob, requestId }, name, reason, contact) {
  const body = new FormData();
  const fields = { reason, contact, request_id: requestId };
  for (const [field, value] of Object.entries(fields)) if (value) body.append(field, value);
  body.append("image", blob, name);
  const response = await send("v1/reports", { method: "POST", headers: withKey(), body });
  if (!response.ok) throw await refusal(response);
}

/**
 * Ask for images, and yield the events {type, …} until the last of them. Aborting `signal` cancels the request.
 * With an `image` {file, name} they start from it, and `mask` (`Mask`) says what of it is drawn anew.
 * Throws `RequestError` if the server refuses or fails it, or if the connection is lost.
 */
export async function* generate(parameters, signal) {
  const all = { ...parameters, stream: true, progress: true };
  const [path, body] = all.image ? ["v1/images/edits", await asForm(all)] : ["v1/images/generations", JSON.stringify(all)];
  const headers = { Accept: "text/event-stream", ...(all.image ? {} : { "Content-Type": "application/json" }) };
  const response = await send(path, { method: "POST", headers: withKey(headers), body, signal });
  if (!response.ok) throw await refusal(response);
  for await (const event of readEvents(response.body)) {
    if (event.type === "error") throw new RequestError(event.error.message, event.error);
    yield event;
  }
}

/** A form as `POST /v1/images/edits` takes it. `FormData` would change the line breaks of prompts. */
async function asForm({ image, mask, ...fields }) {
  const boundary = `krea2-${crypto.getRandomValues(new Uint32Array(4)).join("-")}`;
  const parts = [];
  const add = (name, value, more = "") => {
    parts.push(`--${boundary}\r\nContent-Disposition: form-data; name="${name}"${more}\r\n\r\n`, value, "\r\n");
  };
  const addFile = (name, file, called) => {
    const inQuotes = called.replace(/["\r\n]/g, encodeURIComponent);
    add(name, file, `; filename="${inQuotes}"\r\nContent-Type: ${file.type}`);
  };
  addFile("image", image.file, image.name);
  if (mask) addFile("mask", await mask.file(), "mask.png");
  for (const [name, value] of Object.entries(fields)) {
    if (value !== undefined) add(name, typeof value === "object" ? JSON.stringify(value) : String(value));
  }
  return new Blob([...parts, `--${boundary}--\r\n`], { type: `multipart/form-data; boundary=${boundary}` });
}

/** The events {type, …} of a stream, as they come; without a name, `type` is "". Throws `RequestError`. */
export async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let line = "";
  let name = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const pieces = value.split("\n"); // never the whole line again: one with an image comes in many pieces
      for (const [i, piece] of pieces.entries()) {
        line += piece;
        if (i === pieces.length - 1) break;
        const text = line.endsWith("\r") ? line.slice(0, -1) : line;
        line = "";
        if (text === "" && data.length) {
          const content = data.join("\n");
          if (content !== "[DONE]") yield { type: name, ...JSON.parse(content) };
          [name, data] = ["", []];
        } else if (text.startsWith("event:")) {
          name = text.slice(6).trim();
        } else if (text.startsWith("data:")) {
          data.push(text.slice(5).trimStart());
        }
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError("The connection to the server was lost.");
  } finally {
    reader.cancel().catch(() => {}); // hangs up, also when who reads stopped early
  }
}
