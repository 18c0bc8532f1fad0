// Pictures as large as there is room, without smoothing small ones: their pixels stay what they are.

const SMALL = 320; // pixels of the longer side; photos of more look better smoothed
const MAX_SCALE = 4; // more shows nothing new

const fitting = new WeakMap();
const observer = new ResizeObserver((entries) => {
  for (const { target } of entries) fitting.get(target)();
});

/** Show an image that fills its box without smoothing where that enlarges it. */
export function keepPixels(image) {
  watch(image, image, () => {
    image.classList.toggle("pixels", isEnlarged(image, room(image, image)));
  });
}

/** Show an image within `frame`, enlarged at most four times; small ones by whole numbers. `box` gets its size. */
export function fit(image, frame, box = image) {
  watch(image, frame, () => {
    if (!image.naturalWidth) return;
    const most = Math.min(room(image, frame), MAX_SCALE * devicePixelRatio);
    const isEnlargedSmall = isEnlarged(image, most);
    const scale = (isEnlargedSmall ? Math.floor(most) : most) / devicePixelRatio;
    box.classList.toggle("pixels", isEnlargedSmall);
    box.style.width = `${scale * image.naturalWidth}px`;
    box.style.height = `${scale * image.naturalHeight}px`;
  });
}

function watch(image, frame, update) {
  image.addEventListener("load", update);
  fitting.set(frame, update);
  observer.observe(frame);
}

/** How many of the screen's pixels one of the image's gets in `frame`. */
function room(image, frame) {
  const { clientWidth, clientHeight } = frame;
  return Math.min(clientWidth / image.naturalWidth, clientHeight / image.naturalHeight) * devicePixelRatio;
}

const isEnlarged = ({ naturalWidth, naturalHeight }, scale) => scale > 1 && Math.max(naturalWidth, naturalHeight) <= SMALL;
