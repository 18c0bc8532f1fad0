// A picture to start from: read from a file once, shown smaller, and sent as the file is.

const MAX_BYTES = 50_000_000; // where the server does not say
const MAX_PIXELS = 64_000_000;
const SHOWN = 2048; // pixels of the longer side: more than a screen shows of it at once

const KINDS = {
  png: /^\x89PNG\r\n\x1a\n/,
  jpeg: /^\xff\xd8\xff/,
  webp: /^RIFF[^]{4}WEBP/,
};

/** Why a file is no picture to start from, in a sentence. */
export class SourceError extends Error {}

/**
 * Read a picture: {file, name, width, height} and its `sheet`, a canvas that shows it, turned as its EXIF says.
 * Throws `SourceError`. limits: of the server.
 */
export async function openSource(file, name, { max_image_bytes = MAX_BYTES, max_image_pixels = MAX_PIXELS } = {}) {
  if (file.size > max_image_bytes) {
    throw new SourceError(`${name} is too large: it has ${megabytes(file.size)}, and may have ${megabytes(max_image_bytes)}.`);
  }
  const bytes = await file.arrayBuffer().catch(() => new ArrayBuffer(0)); // now: the file may be another one later
  const beginning = String.fromCharCode(...new Uint8Array(bytes.slice(0, 12)));
  const kind = Object.keys(KINDS).find((each) => KINDS[each].test(beginning));
  if (!kind) throw new SourceError(`${name} is none of PNG, JPEG and WebP.`);
  const picture = new Blob([bytes], { type: `image/${kind}` });
  const bitmap = await decode(picture, name);
  const { width, height } = bitmap;
  const sheet = draw(bitmap, Math.min(1, SHOWN / Math.max(width, height)));
  bitmap.close();
  if (width * height > max_image_pixels) {
    const most = Number((max_image_pixels / 1e6).toPrecision(3));
    throw new SourceError(`${name} is too large: it has ${width} × ${height} pixels, and may have ${most} million.`);
  }
  return { file: picture, name, width, height, sheet };
}

/** The size of an answer that was not asked for in another: the picture's, and what is added to it. */
export function sizeWith({ width, height }, outpaint) {
  const { left = 0, top = 0, right = 0, bottom = 0 } = outpaint ?? {};
  return [left + width + right, top + height + bottom];
}

/** The picture that an answer of a size was made from, as a file that covers the same place, as large as a screen shows. */
export async function before({ file, name, width: across, height: down }, outpaint, size) {
  const bitmap = await decode(file, name);
  const [width, height] = size.map((side) => Math.round(side * Math.min(1, SHOWN / Math.max(...size))));
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const [whole, tall] = sizeWith({ width: across, height: down }, outpaint);
  const scale = Math.max(width / whole, height / tall); // it covers the answer, and what is over is cut off on both sides
  const [left, top] = [(width - scale * whole) / 2, (height - scale * tall) / 2];
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, left + scale * (outpaint?.left ?? 0), top + scale * (outpaint?.top ?? 0), scale * across, scale * down);
  bitmap.close();
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/** "3.2 MB". */
export function megabytes(bytes) {
  return bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${Number((bytes / 1e6).toFixed(1))} MB`;
}

async function decode(file, name) {
  try {
    return await createImageBitmap(file, { imageOrientation: "from-image" }); // as the server turns it
  } catch {
    throw new SourceError(`${name} cannot be read: the file is damaged, or has been cut off.`);
  }
}

function draw(bitmap, scale) {
  const side = (length) => Math.max(1, Math.round(scale * length));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [side(bitmap.width), side(bitmap.height)];
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas;
}
