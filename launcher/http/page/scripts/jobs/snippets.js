// The request for a picture, to be copied: as a line for a shell, or as a Python program.

import { usesKey } from "../api.js";
import { copy } from "../copy.js";
import { nameOf } from "../text.js";

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

/** For sh, bash, zsh and fish: it writes the files and prints their names. */
export function asCurl(parameters) {
  const { url, body, name, extension } = request(parameters);
  const flags = url.includes("[") ? "-gsS" : "-sS"; // or else an address of IPv6 is a pattern
  const key = usesKey() ? `  -H "Authorization: Bearer $KREA2_API_KEY" \\\n` : "";
  return `curl ${flags} '${url}' \\
  -H 'Content-Type: application/json' \\
${key}  -d '${literal(body, inShell).replaceAll("'", "'\\''")}' |
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
  const { url, body, name, extension } = request(parameters);
  const fields = Object.entries(body).map(([field, value]) => `    "${field}": ${literal(value, inPython)},\n`);
  const key = usesKey() ? `    "Authorization": "Bearer " + os.environ["KREA2_API_KEY"],\n` : "";
  return `import base64
import json
${key ? "import os\n" : ""}import urllib.error
import urllib.request

body = {
${fields.join("")}}
headers = {
    "Content-Type": "application/json",
${key}}
request = urllib.request.Request("${url}", json.dumps(body).encode(), headers)
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

function request({ n, output_format, ...parameters }) {
  const all = { ...parameters, n: n === 1 ? undefined : n, output_format };
  const body = Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined));
  const extension = output_format === "jpeg" ? "jpg" : (output_format ?? "png");
  const { href: url } = new URL("v1/images/generations", document.baseURI);
  return { url, body, name: nameOf(parameters.prompt), extension };
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
