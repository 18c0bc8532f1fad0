// The request for a picture, to be copied: as a line for a shell, or as a Python program.

import { usesKey } from "../api.js";
import { copy } from "../copy.js";
import { maskName, nameOf } from "../text.js";

const COPIED_MS = 2000;
const HIDDEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu; // which nobody sees in a terminal, or which turn the text around
const KINDS = { curl: asCurl, python: asPython };

/** Let each button in `box` with `data-copy` copy what `ask()` gives, if it gives parameters of a request. */
export function offerCopies(box, ask) {
  for (const button of box.querySelectorAll("[data-copy]")) {
    const label = button.textContent;
    let timer = null;
    button.addEventListener("click", async () => {
      const parameters = ask();
      if (!parameters) return;
      const isCopied = await copy(KINDS[button.dataset.copy](parameters));
      button.style.minWidth = `${button.offsetWidth}px`; // the text may be shorter
      button.textContent = isCopied ? "Copied" : "Not copied";
      clearTimeout(timer);
      timer = setTimeout(() => (button.textContent = label), COPIED_MS);
    });
  }
}

/** For sh, bash, zsh and fish: it writes the files and prints their names. A picture to start from is read from its file. */
export function asCurl(parameters) {
  const { url, body, files, name, extension } = request(parameters);
  const flags = url.includes("[") ? "-gsS" : "-sS"; // or else an address of IPv6 is a pattern
  const options = usesKey() ? [`-H "Authorization: Bearer $KREA2_API_KEY"`] : [];
  if (files) {
    const parts = Object.entries(files).map(([field, file]) => `${field}=@"${file.replace(/[\\"]/g, "\\$&")}"`);
    options.push(...parts.map((part) => `-F ${forShell(part)}`));
    options.push(...Object.entries(body).map(([field, value]) => `--form-string ${forShell(`${field}=${asField(value)}`)}`));
  } else {
    options.unshift("-H 'Content-Type: application/json'");
    options.push(`-d '${literal(body, inShell).replaceAll("'", "'\\''")}'`);
  }
  return `curl ${flags} '${url}' \\
  ${options.join(" \\\n  ")} |
python3 -c 'import base64, json, sys
answer = json.loads(sys.stdin.read() or sys.exit(1))
if "error" in answer:
    sys.exit(answer["error"]["message"])
for image in answer["data"]:
    name = "${name}-%d.${extension}" % image["seed"]
    open(name, "wb").write(base64.b64decode(image["b64_json"]))
    print(name)'
`;
}

/** For a Python without packages: it writes the files and prints their names. */
export function asPython(parameters) {
  const { url, body, files, name, extension } = request(parameters);
  const key = usesKey() ? `    "Authorization": "Bearer " + os.environ["KREA2_API_KEY"],\n` : "";
  return `import base64
import json
${key ? "import os\n" : ""}import urllib.error
import urllib.request
${(files ? asPythonForm : asPythonJson)(body, files, key)}request = urllib.request.Request("${url}", body, headers)
try:
    answer = json.load(urllib.request.urlopen(request))
except urllib.error.HTTPError as error:
    raise SystemExit(json.load(error)["error"]["message"])
for image in answer["data"]:
    with open(f"${name}-{image['seed']}.${extension}", "wb") as file:
        file.write(base64.b64decode(image["b64_json"]))
    print(file.name)
`;
}

function asPythonJson(body, _, key) {
  return `
fields = {
${lines(body, (value) => literal(value, inPython))}}
headers = {
    "Content-Type": "application/json",
${key}}
body = json.dumps(fields).encode()
`;
}

/** The files have the names under which the page downloads them. */
function asPythonForm(body, files, key) {
  const text = (value) => inPython(JSON.stringify(asField(value)));
  return String.raw`import uuid

files = {
${lines(files, text)}}
fields = {
${lines(body, text)}}
boundary = uuid.uuid4().hex
parts = {f'"{name}"': value.encode() for name, value in fields.items()}
parts |= {f'"{name}"; filename="{name}"': open(file, "rb").read() for name, file in files.items()}
body = b"".join(
    f"--{boundary}\r\nContent-Disposition: form-data; name={head}\r\n\r\n".encode() + value + b"\r\n"
    for head, value in parts.items()
)
body += f"--{boundary}--\r\n".encode()
headers = {
    "Content-Type": f"multipart/form-data; boundary={boundary}",
${key}}
`;
}

const lines = (fields, write) => Object.entries(fields).map(([name, value]) => `    "${name}": ${write(value)},\n`).join("");

function request({ n, output_format, image, mask, ...parameters }) {
  const { width, height, ...rest } = parameters;
  const size = image && !image.sized ? {} : { width, height };
  const all = { ...rest, ...size, n: n === 1 ? undefined : n, output_format };
  const body = Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined));
  const files = image && { image: image.name, ...(mask && { mask: maskName(image.name) }) };
  const extension = output_format === "jpeg" ? "jpg" : (output_format ?? "png");
  const { href: url } = new URL(image ? "v1/images/edits" : "v1/images/generations", document.baseURI);
  return { url, body, files, name: nameOf(parameters.prompt), extension };
}

/** A value as a field of a form. */
const asField = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));

/** Any text as a word of a shell. Backslashes stand outside of quotes, within which fish reads two as one. */
function forShell(text) {
  if (/[^\P{Cc}\n]|[\p{Cf}\p{Zl}\p{Zp}]/u.test(text)) return `"$(printf '${forPrintf(text)}')"`;
  return `'${text.replace(/['\\]/g, (char) => `'\\${char}'`)}'`;
}

/** Text for printf to write, with what nobody sees, or what quotes do not hold, as its bytes. */
function forPrintf(text) {
  const bytes = (char) => Array.from(new TextEncoder().encode(char), (byte) => `\\${byte.toString(8).padStart(3, "0")}`).join("");
  const shown = (char) => (char === "\n" ? char : bytes(char));
  return text.replaceAll("%", "%%").replace(/[\\'"!$`]/g, bytes).replace(HIDDEN, shown);
}

/** Write a value as JSON and Python both do, with what is in quotes changed by `quoted`. */
function literal(value, quoted) {
  if (Array.isArray(value)) return `[${value.map((item) => literal(item, quoted)).join(", ")}]`;
  if (typeof value !== "object") return quoted(JSON.stringify(value));
  return `{${Object.entries(value).map(([name, item]) => `"${name}": ${literal(item, quoted)}`).join(", ")}}`;
}

const hex = (number, digits) => number.toString(16).padStart(digits, "0");
const units = (text) => text.split("").map((unit) => `\\u${hex(unit.charCodeAt(0), 4)}`).join("");

/** A double backslash is one backslash in fish, even within single quotes. */
function inShell(json) {
  return json.replace(/\\\\|\\./g, (pair) => (pair === "\\\\" ? "\\u005c" : pair)).replace(HIDDEN, units);
}

function inPython(json) {
  return json.replace(HIDDEN, (char) => (char.length > 1 ? `\\U${hex(char.codePointAt(0), 8)}` : units(char)));
}
