"""When will each queued job be done? The ticks ahead, from one departure to the next instead of one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.cost import CostModel, Work
from engine.policy import QueuedJob

_LOOK_PAST = 16  # jobs that do not fit into a tick, before no smaller one is looked for


def forecast(
    jobs: Sequence[QueuedJob], costs: CostModel, *, token_budget: int, max_begun: int, begins: float
) -> dict[int, float]:
    """When the image of each job is decoded, by job_id, on the clock of `begins`.

    `jobs` are in the order in which they go, those being decoded first, and the ranks are free at `begins`. The queue
    is packed as the scheduler packs it, as though nothing came any more. `costs` must know the speed of denoise steps.
    """
    done: dict[int, float] = {}
    clock, decoder_free = begins, -math.inf
    for queued in jobs:
        if queued.steps_left == 0:
            ready = begins if queued.decoding_from is None else queued.decoding_from
            decoder_free = max(decoder_free, ready) + _decode_s(queued, costs)
            done[queued.job.job_id] = decoder_free

    waiting = [queued for queued in jobs if queued.steps_left]
    steps_left = [queued.steps_left for queued in waiting]
    sizes = [queued.work.tokens for queued in waiting]
    begun = {queued.job.job_id for queued in waiting if queued.begun}
    encoded: set[int] = set()
    while waiting:
        chosen: list[int] = []
        room, passed, tokens, pairs = token_budget, 0, 0, 0
        smallest = min(sizes)
        for place, size in enumerate(sizes):
            if size > room and chosen:
                passed += 1
                if passed == _LOOK_PAST:
                    break
                continue
            queued = waiting[place]
            if queued.job.job_id not in begun:
                if len(begun) >= max_begun:
                    continue
                begun.add(queued.job.job_id)
                new = queued.prompts.keys() - encoded
                encoded |= new
                clock += costs.encode_s(sum(queued.prompts[prompt] for prompt in new)) or 0.0
            chosen.append(place)
            room -= size
            tokens += size
            pairs += queued.work.pairs
            if room < smallest:
                break
        ticks = min(steps_left[place] for place in chosen)
        clock += ticks * (costs.denoise_s(Work(tokens, pairs)) or 0.0)
        for place in chosen:
            steps_left[place] -= ticks
        for place in reversed(chosen):
            if steps_left[place] == 0:
                queued = waiting.pop(place)
                del steps_left[place], sizes[place]
                begun.discard(queued.job.job_id)
                decoder_free = max(decoder_free, clock) + _decode_s(queued, costs)
                done[queued.job.job_id] = decoder_free
    return done


def _decode_s(queued: QueuedJob, costs: CostModel) -> float:
    return costs.decode_s(queued.job.width * queued.job.height) or 0.0
