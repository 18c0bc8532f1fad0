// What to begin with: pictures of the demo's, each with what it was drawn of; or prompts, for models that draw anything.

// "python -m tests.launcher.http.page.samples" draws these, side by side in samples.webp
export const SAMPLES = [
  ["a red circle on a blue background", 2],
  ["a large yellow star on a purple background", 7],
  ["a green triangle left of an orange square on a black background", 12],
  ["a green star above a pink heart on a white background", 2],
  ["a large red heart on a pink background", 1],
  ["three orange circles on a blue background", 20],
  ["a white cross on a red background", 38],
  ["a small white heart at the top on a green background", 5],
];
const DRAWN_WITH = { width: 128, height: 128, steps: 8, guidance: 0 };
const NOTHING_MORE = { negative_prompt: "", cache: "off", sigmas: [], mu: "", guidance_from: "", guidance_until: "", loras: [] };
const PROMPTS = [
  "a red fox asleep in fresh snow, early morning light, soft focus background",
  "a lighthouse on a cliff in a storm, oil painting with thick brush strokes",
  "a bowl of ramen on a wooden table, steam rising, photographed from above",
  "a quiet street in an old town after rain, reflections of warm windows, film photograph",
];

const element = (id) => document.getElementById(id);

/**
 * Offer samples while there are no pictures. `draw` gets what a chosen one is to be drawn with. The pictures are what
 * the demo draws by its own settings, so where the server's are others, its raw model's for one, there are none.
 */
export function showSamples({ is_demo, defaults }, draw) {
  const hasPictures = is_demo && Object.entries(DRAWN_WITH).every(([name, value]) => defaults[name] === value);
  const samples = is_demo ? SAMPLES : PROMPTS.map((prompt) => [prompt]);
  element("samples").replaceChildren(
    ...samples.map(([prompt, seed], i) => {
      const button = element("sample-template").content.firstElementChild.cloneNode(true);
      const picture = button.querySelector(".sample-picture");
      if (hasPictures) picture.style.backgroundPosition = `${(100 * i) / (samples.length - 1)}% 0`;
      else picture.remove();
      button.querySelector(".sample-prompt").textContent = prompt;
      button.addEventListener("click", () => draw(hasPictures ? { prompt, seed, ...DRAWN_WITH, ...NOTHING_MORE } : { prompt }));
      return button;
    }),
  );
  element("samples-note").hidden = false;
}
