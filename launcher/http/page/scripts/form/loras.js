// The LoRAs that the server has, which of them to draw with, and how strongly.

const element = (id) => document.getElementById(id);

export class LoraList {
  #rows = new Map(); // by name: the checkbox, the strength, whether the server has it, null while nobody knows
  #most = 10;

  /** Strengths go to `most` either way. */
  setMost(most) {
    this.#most = most;
    for (const { strength } of this.#rows.values()) Object.assign(strength, { min: -most, max: most });
  }

  /** Show what the server has. What is chosen stays chosen, also if the server has it no more: it will say so. */
  show(loras) {
    const there = new Set(loras.map(({ name }) => name));
    for (const [name, row] of this.#rows) {
      if (row.isThere === null && !there.has(name)) row.box.checked = false; // it was restored, of another day
      if (row.box.checked) row.isThere = false;
      else this.#remove(name);
    }
    for (const { name, strength, left_out: leftOut } of loras) {
      const row = this.#rows.get(name) ?? this.#add(name, strength);
      row.isThere = true;
      row.item.title = leftOut ?? ""; // what the server does not read of its file
    }
    this.#update();
  }

  /** Choose these, of a visit before; those that the server turns out not to have are dropped. */
  restore(loras) {
    const known = new Set(this.#rows.keys());
    this.choose(loras);
    for (const [name, row] of this.#rows) if (!known.has(name)) row.isThere = null;
    this.#update();
  }

  /** Choose these and no others: {name, strength} each. They stay in this order, in which they are added up. */
  choose(loras) {
    for (const row of this.#rows.values()) row.box.checked = false;
    for (const { name, strength } of loras) {
      const row = this.#rows.get(name) ?? this.#add(name, strength);
      row.box.checked = true;
      row.strength.value = strength;
      this.#rows.delete(name);
      this.#rows.set(name, row);
    }
    this.#update();
  }

  /** What is chosen, as the API takes it; null if a strength is not a number. */
  read() {
    const chosen = [...this.#rows].filter(([, row]) => row.box.checked);
    if (chosen.some(([, { strength }]) => strength.value === "")) return null;
    return chosen.map(([name, { strength }]) => ({ name, strength: strength.valueAsNumber }));
  }

  #add(name, strength) {
    const item = element("lora-template").content.firstElementChild.cloneNode(true);
    const row = { item, box: item.querySelector("[type=checkbox]"), strength: item.querySelector(".lora-strength"), isThere: false };
    item.querySelector(".lora-name").textContent = name;
    Object.assign(row.strength, { value: strength, min: -this.#most, max: this.#most, ariaLabel: `Strength of ${name}` });
    row.box.addEventListener("change", () => this.#update());
    this.#rows.set(name, row);
    element("lora-list").append(item);
    return row;
  }

  #remove(name) {
    const { item } = this.#rows.get(name);
    if (item.contains(document.activeElement)) element("loras").focus(); // else the keyboard would be lost
    item.remove();
    this.#rows.delete(name);
  }

  #update() {
    for (const [name, { item, box, strength, isThere }] of this.#rows) {
      strength.disabled = !box.checked;
      item.classList.toggle("missing", isThere === false);
      if (!isThere && !box.checked) this.#remove(name);
    }
    element("loras").hidden = this.#rows.size === 0;
  }
}
