// Says to whoever runs the server what is wrong with a picture.

import { report } from "../api.js";
import { reasonOf } from "../jobs/reasons.js";
import { fileName } from "../text.js";

const element = (id) => document.getElementById(id);

export class Report {
  #picture = null;
  #onSent = null;

  constructor() {
    this.dialog = element("report");
    element("report-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    element("report-cancel").addEventListener("click", () => this.dialog.close());
    element("report-reason").addEventListener("input", () => this.#tell(""));
  }

  /** Ask what is wrong with a picture, and send it; `onSent` is called when it has arrived. */
  open(picture, onSent) {
    this.#picture = picture;
    this.#onSent = onSent;
    element("report-reason").value = "";
    this.#tell("");
    this.dialog.showModal();
    element("report-reason").focus();
  }

  async #send() {
    const reason = element("report-reason").value.trim();
    if (!reason) return this.#tell("Say what is wrong with the picture.");
    const picture = this.#picture;
    element("report-send").disabled = true;
    try {
      await report(picture, fileName(picture.parameters, picture.format), reason, element("report-contact").value.trim());
      this.dialog.close();
      this.#onSent();
    } catch (error) {
      this.#tell(reasonOf(error).short);
    } finally {
      element("report-send").disabled = false;
    }
  }

  #tell(problem) {
    element("report-error").textContent = problem;
    element("report-error").hidden = !problem;
    if (problem) element("report-reason").setAttribute("aria-invalid", "true");
    else element("report-reason").removeAttribute("aria-invalid");
    if (problem) element("report-reason").focus();
  }
}
