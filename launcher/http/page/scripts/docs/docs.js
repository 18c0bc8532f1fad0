// The page at /docs: its forms, which send requests to this server, its key, and what may be copied.

import { setApiKey, usesKey } from "../api.js";
import { copy } from "../copy.js";
import { Trial } from "./trial.js";

const COPIED_MS = 2000;
const root = new URL(document.body.dataset.root, location.href);

/** Let the snippets ask where the page was found: a proxy may have a path, and a name, that the server does not know. */
function nameThisServer() {
  const { base } = document.body.dataset;
  const here = root.href.replace(/\/$/, "");
  for (const code of document.querySelectorAll(".snippet code")) {
    for (const part of code.childNodes) part.textContent = part.textContent.replaceAll(base, here);
  }
}

function offerCopies() {
  for (const button of document.querySelectorAll("button.copy")) {
    button.hidden = false;
    const label = button.innerHTML;
    button.addEventListener("click", async () => {
      const isCopied = await copy(button.parentElement.querySelector("code").textContent);
      button.textContent = isCopied ? "Copied" : "Not copied";
      setTimeout(() => (button.innerHTML = label), COPIED_MS);
    });
  }
}

function askForKey(form) {
  const input = form.querySelector("input");
  form.hidden = false;
  input.placeholder = usesKey() ? "The key of this tab is used" : "";
  form.addEventListener("submit", (event) => event.preventDefault());
  input.addEventListener("input", () => setApiKey(input.value.trim()));
}

nameThisServer();
offerCopies();
const keyForm = document.getElementById("key-form");
if (keyForm) askForKey(keyForm);
for (const form of document.querySelectorAll("form.try")) new Trial(form, root);
if (matchMedia("(max-width: 900px)").matches) document.querySelector(".contents details").open = false;
