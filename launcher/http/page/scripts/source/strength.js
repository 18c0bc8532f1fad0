// What a strength means: how much of the picture is drawn anew, and in how many steps.

import { plural } from "../text.js";

const WHOLE = [
  [0.3, "Little changes: tones and fine details."],
  [0.5, "Details and colours change, what is where stays."],
  [0.75, "Much is drawn anew, shapes and places stay."],
  [1, "Only the shape of the idea is kept."],
];

/** Of a request that gives none. isPart: with a mask, or with something to add around the picture. */
export const defaultStrength = (isPart) => (isPart ? 1 : 0.6);

/** How many of `steps` steps are run: the last ones, or with `all` as many whatever the strength. */
export function stepsRun(steps, strength, all) {
  if (strength === 0) return 0;
  return all ? steps : steps - Math.trunc(steps - Math.min(steps * strength, steps));
}

/** Whether noise covers all of what is drawn anew, as it does at a strength of 1. */
function keepsNothing(strength, steps, all) {
  return strength === 1 || (steps !== null && (all ? Math.trunc(steps / strength) : stepsRun(steps, strength)) === steps);
}

/** In words. part: what is drawn anew, where that is not the whole picture; steps: null while nobody knows. */
export function meaning(strength, { part = null, steps = null, all = false }) {
  const run = steps === null ? null : stepsRun(steps, strength, all);
  if (strength === 0) return "Nothing is drawn: the picture comes back as it is.";
  const words = keepsNothing(strength, steps, all) ? anew(part) : WHOLE.find(([below]) => strength < below)[1];
  return run === null ? words : `${words} ${run} of ${plural(steps, "step")} ${run === 1 ? "is" : "are"} run.`;
}

function anew(part) {
  return part ? `${part} is drawn anew, to go with the rest.` : "Nothing of the picture is kept.";
}
