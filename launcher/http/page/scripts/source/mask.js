// What of a picture is painted to be drawn anew: strokes, from which the mask is drawn at any size.

const LOOKED_AT = 512; // pixels of the longer side, for how much is painted
const MAX_PIXELS = 16_777_216; // of a canvas, in some browsers; a larger picture's mask is smaller, of the same shape
const ROWS = 256; // read at once

export class Mask {
  #marks; // strokes {points, radius, erases}, "all" changed into its opposite, and "nothing" left
  #undone = [];
  #file = null;

  /** Of a picture of `width` × `height`, in whose pixels strokes are. */
  constructor(width, height, marks = []) {
    Object.assign(this, { width, height });
    this.#marks = marks;
  }

  /** As it is now, whatever is painted later. */
  copy() {
    return new Mask(this.width, this.height, [...this.#marks]);
  }

  /** Begin a stroke at a point: a dot, until it goes on. */
  begin(x, y, radius, erases) {
    this.#add({ points: [[x, y]], radius, erases });
  }

  /** Go on with the stroke to a point. */
  go(x, y) {
    this.#marks.at(-1).points.push([x, y]);
    this.#file = null;
  }

  /** Forget the stroke that was begun. */
  drop() {
    this.#marks.pop();
    this.#file = null;
  }

  invert() {
    this.#add("opposite");
  }

  clear() {
    if (this.#marks.length && this.#marks.at(-1) !== "nothing") this.#add("nothing");
  }

  get canUndo() {
    return this.#marks.length > 0;
  }

  get canRedo() {
    return this.#undone.length > 0;
  }

  undo() {
    if (this.canUndo) this.#undone.push(this.#marks.pop());
    this.#file = null;
  }

  redo() {
    if (this.canRedo) this.#marks.push(this.#undone.pop());
    this.#file = null;
  }

  /** Draw what is painted over the whole of `canvas`, in one colour. */
  draw(canvas, colour) {
    const pen = canvas.getContext("2d");
    pen.reset();
    for (const mark of this.#marks) drawMark(pen, mark, canvas.width / this.width, colour);
  }

  /** Draw only what the stroke has got since it had `from` points, over what was drawn before. */
  drawOn(canvas, colour, from) {
    const { points, ...stroke } = this.#marks.at(-1);
    drawMark(canvas.getContext("2d"), { ...stroke, points: points.slice(Math.max(0, from - 1)) }, canvas.width / this.width, colour);
  }

  /** How many points the stroke has. */
  get length() {
    return this.#marks.at(-1)?.points?.length ?? 0;
  }

  /** How much of the picture is painted, from 0 to 1. */
  share() {
    if (!this.#marks.length) return 0;
    const canvas = this.#canvas(Math.min(1, LOOKED_AT / Math.max(this.width, this.height)));
    const pixels = threshold(canvas.getContext("2d"), 0, canvas.width, canvas.height);
    return pixels.painted / (canvas.width * canvas.height);
  }

  /** The mask as a PNG of the picture's size: white is painted, black is not. */
  file() {
    this.#file ??= this.#write();
    return this.#file;
  }

  #write() {
    const canvas = this.#canvas(Math.min(1, Math.sqrt(MAX_PIXELS / (this.width * this.height))));
    const pen = canvas.getContext("2d");
    for (let top = 0; top < canvas.height; top += ROWS) {
      const { image } = threshold(pen, top, canvas.width, Math.min(ROWS, canvas.height - top));
      pen.putImageData(image, 0, top);
    }
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }

  #canvas(scale) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [this.width, this.height].map((side) => Math.max(1, Math.round(scale * side)));
    canvas.getContext("2d", { willReadFrequently: true }); // in memory, where pixels are read
    this.draw(canvas, "#fff");
    return canvas;
  }

  #add(mark) {
    this.#marks.push(mark);
    this.#undone = [];
    this.#file = null;
  }
}

function drawMark(pen, mark, scale, colour) {
  const { width, height } = pen.canvas;
  pen.fillStyle = pen.strokeStyle = colour;
  if (mark === "nothing") {
    pen.clearRect(0, 0, width, height);
  } else if (mark === "opposite") {
    pen.globalCompositeOperation = "source-out"; // where nothing is
    pen.fillRect(0, 0, width, height);
  } else {
    pen.globalCompositeOperation = mark.erases ? "destination-out" : "source-over";
    Object.assign(pen, { lineWidth: 2 * scale * mark.radius, lineCap: "round", lineJoin: "round" });
    const [[x, y]] = mark.points;
    pen.beginPath();
    pen.arc(scale * x, scale * y, scale * mark.radius, 0, 2 * Math.PI); // a line of no length is not drawn
    pen.fill();
    pen.beginPath();
    for (const [x, y] of mark.points) pen.lineTo(scale * x, scale * y);
    pen.stroke();
  }
  pen.globalCompositeOperation = "source-over";
}

/** Rows of a canvas, each pixel white or black, and how many are white: the edges of strokes are grey. */
function threshold(pen, top, width, height) {
  const image = pen.getImageData(0, top, width, height);
  const bytes = image.data;
  let painted = 0;
  for (let i = 0; i < bytes.length; i += 4) {
    const isPainted = bytes[i + 3] >= 128;
    painted += isPainted;
    bytes[i] = bytes[i + 1] = bytes[i + 2] = isPainted ? 255 : 0;
    bytes[i + 3] = 255;
  }
  return { image, painted };
}
