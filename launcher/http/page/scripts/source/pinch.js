// Two fingers on a picture, which move and enlarge it.

export class Pinch {
  #fingers = new Map(); // where each is, by its pointer

  /** `onMove` gets by how much they went apart, where their middle was, and how far it went. */
  constructor(onMove) {
    this.onMove = onMove;
  }

  /** A pointer is put down. Whether there are two fingers now. */
  begin({ pointerId, pointerType, clientX, clientY }) {
    if (pointerType === "touch") this.#fingers.set(pointerId, [clientX, clientY]);
    return this.#fingers.size > 1;
  }

  /** A pointer moves. Whether it is one of two fingers. */
  go({ pointerId, clientX, clientY }) {
    if (!this.#fingers.has(pointerId)) return false;
    const before = this.#look();
    this.#fingers.set(pointerId, [clientX, clientY]);
    if (this.#fingers.size < 2) return false;
    const after = this.#look();
    this.onMove(after.apart / before.apart, before.x, before.y, after.x - before.x, after.y - before.y);
    return true;
  }

  end({ pointerId }) {
    this.#fingers.delete(pointerId);
  }

  #look() {
    const [[x, y], [otherX, otherY] = [x, y]] = [...this.#fingers.values()];
    return { x: (x + otherX) / 2, y: (y + otherY) / 2, apart: Math.max(1, Math.hypot(x - otherX, y - otherY)) };
  }
}
