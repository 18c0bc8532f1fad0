"""When will each queued job be done? The steps ahead, some at a time instead of one by one."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Sequence
from operator import attrgetter

from engine.scheduling.cost import CostModel, Work
from engine.scheduling.policy import QueuedJob

_HAND_OVER_STEPS = 2.5  # half of the running one, one that was sent already, and the one that hands it over
_LOOK_PAST = 8  # jobs that do not fit into a step, before no smaller one is looked for


def forecast(
    jobs: Sequence[QueuedJob],
    costs: CostModel,
    key: Callable[[QueuedJob, float], tuple[float, ...]],
    *,
    token_budget: int,
    max_begun: int,
    max_decoding: int,
    begins: float,
    step_s: float,
) -> dict[int, float]:
    """Say when the image of each job is decoded, by job_id, in seconds on the clock of `begins`.

    `jobs` are in the order in which they go, those being decoded first; `key` orders jobs by the work they have left.
    The ranks are free at `begins`, when they have done a step of `step_s`. The queue is packed much as the scheduler
    packs it, as though nothing came any more; the bound on prompt tokens and requests that run alone are left out.
    `costs` must know the speed of denoise steps.
    """
    decoder = _Decoder(costs, max_decoding)
    clock, gone = begins, 0
    waiting = [_Waiting(queued, costs, key) for queued in jobs if queued.steps_left]
    for queued in jobs:
        if queued.steps_left == 0:
            ready = begins if queued.decoding_from is None else queued.decoding_from
            decoder.decode(queued, ready, step_s if waiting else 0.0)
    smallest = min((item.tokens for item in waiting), default=0)
    begun = sum(item.begun for item in waiting)
    encoded = {prompt for queued in jobs if queued.begun for prompt in queued.prompts}
    while waiting:
        chosen: list[int] = []
        room, passed, tokens, pairs = token_budget, 0, 0, 0
        places = max_begun - begun - decoder.holds(clock)
        for place, item in enumerate(waiting):
            if chosen and item.tokens > room:
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
            chosen.append(place)
            room -= item.tokens
            tokens += item.tokens
            pairs += item.queued.work.pairs
            if room < smallest:
                break
        if not chosen:  # all places are held by images that are to be decoded
            clock = decoder.next_free(clock)
            continue
        stepping = [waiting.pop(place) for place in reversed(chosen)]
        # Jobs that step may get ahead of what did not fit, so the order is looked at anew, ever less often: an
        # estimate need not be nearer the truth than by a part of itself.
        steps = min(1 + gone // 8, *(item.steps_left for item in stepping))
        gone += steps
        step_s = costs.relative(Work(tokens, pairs))
        clock += steps * step_s
        for item in reversed(stepping):
            item.steps_left -= steps
            if item.steps_left:
                item.key = key(item.queued, item.steps_left * item.alone_s)
                insort(waiting, item, key=attrgetter("key"))
        done = [item.queued for item in stepping if not item.steps_left]
        begun -= len(done)
        for queued in sorted(done, key=lambda queued: key(queued, 0)):
            decoder.decode(queued, clock, step_s if waiting else 0.0)
    return decoder.done


class _Waiting:
    """A job and how far it will have come. alone_s: of a step that it has to itself."""

    __slots__ = ("alone_s", "begun", "key", "queued", "steps_left", "tokens")

    def __init__(
        self, queued: QueuedJob, costs: CostModel, key: Callable[[QueuedJob, float], tuple[float, ...]]
    ) -> None:
        self.queued, self.tokens = queued, queued.work.tokens
        self.steps_left, self.begun = queued.steps_left, queued.begun
        self.alone_s = costs.relative(queued.work)
        self.key = key(queued, self.steps_left * self.alone_s)


class _Decoder:
    """Decodes one image after the other. `most` may be with it; a place that gets free is filled by a later step."""

    def __init__(self, costs: CostModel, most: int) -> None:
        self._costs, self._most = costs, most
        self._free: list[float] = []  # when the place of each image gets free
        self.done: dict[int, float] = {}

    def holds(self, now: float) -> int:
        return len(self._free) - bisect_right(self._free, now)

    def next_free(self, now: float) -> float:
        return self._free[bisect_right(self._free, now)]

    def decode(self, queued: QueuedJob, ready: float, step_s: float) -> None:
        begins = ready
        hand_over_s = _HAND_OVER_STEPS * step_s
        if len(self._free) >= self._most and (free := self._free[-self._most]) > ready - hand_over_s:
            begins = max(ready, free + hand_over_s)
        if self._free:
            begins = max(begins, self._free[-1])
        self._free.append(begins + (self._costs.decode_s(queued.job.width * queued.job.height) or 0.0))
        self.done[queued.job.job_id] = self._free[-1]
