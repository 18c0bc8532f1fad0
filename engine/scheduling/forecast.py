"""When will each queued job be done? The steps ahead, some at a time instead of one by one."""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Collection, Mapping, Sequence
from heapq import heappop, heappush
from operator import attrgetter

from engine.scheduling.cost import NO_WORK, CostModel, Work
from engine.scheduling.decoding import HAND_OVER_S, HAND_OVER_STEPS, decode_s
from engine.scheduling.job_work import JobWork
from engine.scheduling.packing import picture_s
from engine.scheduling.policy import Key, QueuedJob

_HAND_OVER_STEPS = 2.5  # half of the running one, one that was sent already, and the one that hands it over
_LOOK_PAST = 8  # jobs that do not fit into a step, before no smaller one is looked for


def forecast(
    jobs: Sequence[QueuedJob],
    costs: CostModel,
    key: Key,
    *,
    held: Collection[int],
    decoding: Mapping[int, float],
    token_budget: int,
    max_begun: int,
    max_decoding: int,
    decodes_in_turn: bool,
    begins: float,
    step_s: float,
) -> dict[int, float]:
    """Say when the image of each job is decoded, by job_id, in seconds on the clock of `begins`.

    `jobs` are in the order in which they go; `key` orders jobs by the work they have left. held: pictures that ranks
    have encoded, by id. decoding: when those are decoded that the decoder has, in order. decodes_in_turn: no step runs
    while an image is decoded. The ranks are free at `begins`, when they have done a step of `step_s`. The queue is
    packed much as the scheduler packs it, as though nothing came any more; the bounds on prompt tokens and pictures and
    what jobs hold, requests that run alone and steps that run no block, which take no time, are left out. `costs` must
    know the speed of denoise steps.
    """
    decoder = _Decoder(costs, max_decoding, decoding)
    clock, gone = begins, 0
    held = set(held)
    waiting = [_Waiting(queued, costs, key, held) for queued in jobs if not queued.is_denoised]
    for queued in jobs:
        if queued.is_denoised:
            decoder.add(queued, key(queued, decode_s(queued, costs)), begins)
    if decodes_in_turn:
        clock = decoder.decode_between(clock)
    plans = any(item.plan for item in waiting)
    smallest = min((item.work.tokens for item in waiting), default=0)
    begun = sum(item.begun for item in waiting)
    encoded = {prompt for queued in jobs if queued.begun for prompt in queued.prompts}
    while waiting:
        chosen: list[int] = []
        room, passed, tokens, pairs = token_budget, 0, 0, 0
        places = max_begun - begun - decoder.holds(clock)
        for place, item in enumerate(waiting):
            if tokens and item.work.tokens > room:
                passed += 1
                if passed == _LOOK_PAST:
                    break
                continue
            if not item.begun:
                if places <= 0:
                    continue
                places -= 1
                begun += 1
                item.begun = True
                for prompt, length in item.queued.prompts.items():
                    if prompt not in encoded:
                        encoded.add(prompt)
                        clock += costs.encode_s(length) or 0.0
                if (picture := item.queued.job.picture) is not None and picture.picture_id not in held:
                    held.add(picture.picture_id)
                    clock += costs.encode_picture_s(picture.pixels) or 0.0
            chosen.append(place)
            room -= item.work.tokens
            tokens += item.work.tokens
            pairs += item.work.pairs
            if room < smallest:
                break
        if not chosen:  # all places are held by images that are to be decoded
            clock = decoder.next_free(clock)
            continue
        stepping = [waiting.pop(place) for place in reversed(chosen)]
        # Jobs that step may get ahead of what did not fit, so the order is looked at anew, ever less often: an
        # estimate need not be nearer the truth than by a part of itself.
        # One that starts and has no steps takes part in none.
        steps = min((1 + gone // 8, *(item.steps_left for item in stepping if item.steps_left)))
        if plans and any(item.plan for item in stepping):
            step_s = _step_s(stepping, steps, costs)
        else:
            step_s = costs.relative(Work(tokens, pairs)) if tokens else 0.0
        if step_s and places <= 0 and (free := decoder.held_until(clock)) is not None:  # then another job may begin
            steps = min(steps, 1 + int((free - clock) / step_s))
        gone += steps
        clock += steps * step_s
        for item in reversed(stepping):
            item.steps_left = max(0, item.steps_left - steps)
            if item.steps_left:
                left_s = item.steps_left * item.alone_s if item.plan is None else item.reckon(item.plan, costs)
                item.key = key(item.queued, left_s)
                insort(waiting, item, key=attrgetter("key"))
        decoder.decode_until(clock, step_s)
        for item in stepping:
            if not item.steps_left:
                begun -= 1
                decoder.add(item.queued, key(item.queued, decode_s(item.queued, costs)), clock)
        if decodes_in_turn:
            clock = decoder.decode_between(clock)
    decoder.decode_until(math.inf, 0.0)
    return decoder.done


def _step_s(stepping: Sequence[_Waiting], steps: int, costs: CostModel) -> float:
    """Estimate what each of so many steps of these takes, on average."""
    works = [item.next(steps) for item in stepping]
    tokens, pairs = sum(work.tokens for work in works), sum(work.pairs for work in works)
    return costs.relative(Work(tokens, pairs, max(work.passes for work in works))) / steps


class _Waiting:
    """A job and how far it will have come. steps_left: those that run blocks; work: of the next of them, at most.
    alone_s: of a step that it has to itself, where all are alike."""

    __slots__ = ("alone_s", "begun", "key", "plan", "queued", "steps_left", "work")

    def __init__(self, queued: QueuedJob, costs: CostModel, key: Key, held: Collection[int]) -> None:
        self.queued, self.work, self.plan = queued, queued.work if queued.steps_left else NO_WORK, queued.plan
        self.steps_left, self.begun = queued.steps_left, queued.begun
        self.alone_s = costs.relative(queued.work)
        left_s = self.steps_left * self.alone_s
        if self.plan is not None:
            self.steps_left = self.plan.shape.left[queued.steps_left].busy
            left_s = self.reckon(self.plan, costs)
        self.key = key(queued, left_s if queued.job.picture is None else left_s + picture_s(queued, held, costs))

    def reckon(self, plan: JobWork, costs: CostModel) -> float:
        """Look up its next step, and estimate the seconds of all that are left if it has the ranks to itself."""
        left = plan.shape.next_busy[self.steps_left]
        self.work = plan.packed(left)
        return costs.relative(plan.expected(left, 0))

    def next(self, steps: int) -> Work:
        """Add up what is expected of its next steps."""
        if not self.steps_left:
            return NO_WORK
        if self.plan is None:
            return Work(self.work.tokens * steps, self.work.pairs * steps, steps)
        next_busy = self.plan.shape.next_busy
        return self.plan.expected(next_busy[self.steps_left], next_busy[self.steps_left - steps])


class _Decoder:
    """Decodes one image after the other, and is handed the next ones as `Decoding.choose` has it. `most` may be with
    it; a place that gets free is filled by a later step. done: when each image is decoded, by job_id."""

    def __init__(self, costs: CostModel, most: int, decoding: Mapping[int, float]) -> None:
        self._costs, self._most = costs, most
        self.done = dict(decoding)
        self._free = list(decoding.values())  # when the place of each image gets free
        self._ready: list[tuple[tuple[float, ...], int, float, QueuedJob]] = []  # a heap, by key

    def holds(self, now: float) -> int:
        """Count the images that are ready or with it."""
        return len(self._ready) + len(self._free) - bisect_right(self._free, now)

    def next_free(self, now: float) -> float:
        """Say when the next image is decoded."""
        if not self._free or self._free[-1] <= now:
            self._decode(0.0)
        return self._free[bisect_right(self._free, now)]

    def held_until(self, now: float) -> float | None:
        """Say when the image is decoded that is being decoded now; None if none is."""
        place = bisect_right(self._free, now)
        return self._free[place] if place < len(self._free) else None

    def add(self, queued: QueuedJob, key: tuple[float, ...], ready: float) -> None:
        """Add a job that has done its last step at `ready`."""
        heappush(self._ready, (key, queued.arrival, ready, queued))

    def decode_until(self, now: float, step_s: float) -> None:
        """Decode what has been handed over before the step of `step_s` that ends `now`."""
        while self._ready and self._chosen_at(step_s) <= now - step_s:
            self._decode(step_s)

    def decode_between(self, now: float) -> float:
        """Decode all that is ready, before the next step. Returns when that begins, if it could `now`."""
        while self._ready:
            self._decode(0.0)
            now = max(now, self._free[-1])
        return now

    def _chosen_at(self, step_s: float) -> float:
        """When the next image is chosen from those that are ready."""
        if not self._free:
            return -math.inf
        lasts = self._free[-1] - HAND_OVER_STEPS * step_s - HAND_OVER_S
        return max(lasts, self._free[-self._most]) if len(self._free) >= self._most else lasts

    def _decode(self, step_s: float) -> None:
        _, _, ready, queued = heappop(self._ready)
        begins, hand_over_s = ready, _HAND_OVER_STEPS * step_s
        if len(self._free) >= self._most and (free := self._free[-self._most]) > ready - hand_over_s:
            begins = max(ready, free + hand_over_s)
        if self._free:
            begins = max(begins, self._free[-1])
        self._free.append(begins + decode_s(queued, self._costs))
        self.done[queued.job.job_id] = self._free[-1]
