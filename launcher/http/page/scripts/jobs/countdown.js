// How long a request still takes, as a person can follow it: the engine's estimates without their jitter.

import { duration } from "../text.js";

const SETTLE_S = 2; // until a first estimate is shown that no second one bears out
const FOLLOW_S = 4; // in which what is shown comes near to a lower estimate
const DOUBT_S = 10; // for so long estimates are far above what is shown, before it goes up
const STALL_S = 10; // without a step, and three times longer than any took so far: nobody knows any more
const LATE_S = 5;

/** Times are seconds of any clock that goes on, and `now` is what it says. */
export class Countdown {
  #begun = null; // when the first estimate came
  #end = null; // when it is done, as the newest estimate says
  #shown = null; // seconds left when last looked at, at `#looked`
  #looked = 0;
  #doubted = null; // since when estimates are far above that
  #stepped = null; // when the last step was heard of, while there are more to come
  #longest = null; // time between two steps

  /** News has come, with an estimate of the seconds that are left or null, while steps are made or not. */
  hear(seconds, now, { isStepping = false } = {}) {
    if (this.#isStalled(now)) this.#begun = this.#shown = this.#doubted = null;
    if (!isStepping) this.#longest = null;
    else if (this.#stepped !== null) this.#longest = Math.max(this.#longest ?? 0, now - this.#stepped);
    this.#stepped = isStepping ? now : null;
    if (seconds === null) return;
    this.#follow(now);
    this.#end = now + seconds;
    if (this.#begun === null) this.#begun = now;
    else if (this.#shown === null) this.#show(now);
    this.#doubt(now);
  }

  /** Seconds that are left: less than before, unless estimates keep to more. Null while nobody knows. */
  left(now) {
    if (this.#begun === null || this.#isStalled(now)) return null;
    if (this.#shown === null && now - this.#begun >= SETTLE_S) this.#show(now);
    this.#follow(now);
    return this.#shown;
  }

  /** What to say about it: "about 8 s left". */
  text(now) {
    if (this.#isStalled(now)) return `no step for ${duration(now - this.#stepped)}`;
    const left = this.left(now);
    if (left === null) return "estimating…";
    if (left >= 1) return `about ${duration(left)} left`;
    return now - this.#end < LATE_S ? "almost done" : "longer than expected";
  }

  #isStalled(now) {
    return this.#longest !== null && now - this.#stepped > STALL_S + 3 * this.#longest;
  }

  #show(now) {
    this.#shown = Math.max(0, this.#end - now);
    this.#looked = now;
  }

  /** Count down: faster while that is above the estimate, more slowly or not at all while it is below. */
  #follow(now) {
    if (this.#shown === null) return;
    const gap = this.#shown - (this.#end - this.#looked);
    const next = this.#end - now + gap * Math.exp((this.#looked - now) / FOLLOW_S);
    this.#shown = Math.max(0, Math.min(this.#shown, next));
    this.#looked = now;
  }

  #doubt(now) {
    const left = this.#end - now;
    if (this.#shown === null || left <= Math.max(1.5 * this.#shown, this.#shown + 5)) {
      this.#doubted = null;
    } else if (now - (this.#doubted ??= now) >= DOUBT_S) {
      this.#doubted = null;
      this.#show(now);
    }
  }
}
