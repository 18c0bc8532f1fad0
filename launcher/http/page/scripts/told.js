// What is told in one line, with the rest of it folded.

import { sentence } from "./text.js";

/** Show `short` in `box`, and under it `details` on demand. kind: "failed", "cancelled" or "warning". */
export function tell(box, { short, details, kind }) {
  const line = document.createElement(details ? "summary" : "p");
  line.textContent = short;
  if (details) {
    const [folded, rest] = [document.createElement("details"), document.createElement("p")];
    rest.append(...details.split(/(--[a-z][\w-]*)/).map((piece, i) => (i % 2 ? option(piece) : piece)));
    folded.append(line, rest);
    box.replaceChildren(folded);
  } else {
    box.replaceChildren(line);
  }
  box.dataset.kind = kind;
  box.hidden = false;
}

/** An option of the command line, which no line breaks. */
function option(text) {
  return Object.assign(document.createElement("code"), { textContent: text });
}

/** What to tell of warnings: the first sentence, and the rest. */
export function shortWarning(warnings) {
  const all = warnings.map(sentence).join("\n");
  const [first] = all.match(/^.+?[.!?…](?=\s+\p{Lu}|\s*\n|$)/u) ?? [all];
  return { short: first[0].toUpperCase() + first.slice(1), details: all.slice(first.length).trim(), kind: "warning" };
}
