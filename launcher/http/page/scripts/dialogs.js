// The two questions the page asks: may it delete, and what is the API key.

import { setApiKey } from "./api.js";

const element = (id) => document.getElementById(id);

function closed(dialog) {
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}

/** Whether the user says yes to deleting. */
export async function confirmDeletion(question) {
  const dialog = element("confirm");
  element("confirm-question").textContent = question;
  dialog.returnValue = "";
  dialog.showModal();
  return (await closed(dialog)) === "yes";
}

let asking = null;

/** Ask for the API key, once for all who want it now. Whether there is a new one. */
export function askForKey(reason) {
  asking ??= ask(reason).finally(() => (asking = null));
  return asking;
}

let asked = false;

async function ask(reason) {
  const dialog = element("key-dialog");
  const message = element("key-message");
  message.hidden = !asked; // the first time, that a key is missing is no mistake of the user's
  message.textContent = reason;
  asked = true;
  element("key").value = "";
  element("key-cancel").onclick = () => dialog.close("");
  dialog.returnValue = "";
  dialog.showModal();
  const answer = await closed(dialog);
  const key = element("key").value.trim();
  element("key").value = "";
  if (answer !== "yes" || !key) return false;
  setApiKey(key);
  return true;
}
