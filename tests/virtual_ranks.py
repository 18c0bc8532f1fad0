"""Ranks on a virtual clock: they take the time that a cost model says, and check every step as real ranks would."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from engine.scheduling.cost import NO_WORK, CostModel, Work
from engine.scheduling.scheduler import Scheduler
from engine.step import Job, Picture, Step
from engine.step_cache.settings import StepCache
from engine.step_cache.step_plan import WHOLE, StepKind, plan_of

STEPS_AHEAD = 2


def make_job(
    job_id: int,
    *,
    steps: int = 2,
    prompt: tuple[int, ...] = (1, 2),
    width: int = 64,
    height: int = 64,
    picture: Picture | None = None,
    guided: bool = False,
    cache: StepCache | None = None,
    window: tuple[float, float] = WHOLE,
) -> Job:
    return Job(
        job_id=job_id,
        prompt_ids=prompt,
        negative_ids=(1,) if guided else None,
        width=width,
        height=height,
        steps=steps,
        guidance=0.0,
        mu=None,
        seed=job_id,
        picture=picture,
        cache=cache,
        guidance_window=window,
    )


def make_costs(
    fixed: float = 0.02,
    per_token: float = 2e-5,
    per_pair: float = 1e-10,
    encode: float = 1e-4,
    decode: float = 1e-7,
    picture: float = 6e-8,
) -> CostModel:
    """Costs that are known exactly: seconds, and seconds a token, pair, prompt token and pixel, of an image and a
    picture."""
    costs = CostModel()
    works = [Work.of([tokens]) for tokens in (100, 1000, 10000, 40000)]
    costs.fit([(work, fixed + per_token * work.tokens + per_pair * work.pairs) for work in works])
    costs.correct_encode(1, encode)
    costs.correct_decode(1, decode)
    costs.correct_encode_picture(1, picture)
    return costs


def prompt_tokens(jobs: Iterable[Job]) -> int:
    """What ranks encode when these jobs start: each distinct prompt once."""
    return sum(map(len, {ids for job in jobs for ids in job.prompts}))


def follow_pictures(step: Step, held: set[int]) -> None:
    """Encode and forget what a step says, of what ranks hold, and check that they can follow it."""
    started = [job.picture for job in step.start if job.picture is not None]
    for picture in step.encode:
        assert picture in started
        assert picture.picture_id not in held
        held.add(picture.picture_id)
    assert {picture.picture_id for picture in started} <= held
    for picture_id in step.forget:
        held.remove(picture_id)


@dataclass(frozen=True)
class Arrival:
    at: float
    job: Job
    segments: tuple[int, ...]
    request: int
    priority: int = 0
    state_bytes: int = 0


@dataclass
class VirtualRanks:
    """Runs a scheduler until nothing is left to do. `on_step` sees every step and the time at which it was made.

    Halves that may be cached run `cached_share` of the blocks; a step whose halves run no block takes no time.
    """

    scheduler: Scheduler
    costs: CostModel
    on_step: Callable[[Step, float], None] | None = None
    cached_share: float = 0.5
    begun_at: dict[int, float] = field(default_factory=dict)
    decoded_at: dict[int, float] = field(default_factory=dict)
    queued_at_arrival: dict[int, tuple[int, int]] = field(default_factory=dict)  # jobs and steps, its own too
    longest_step_s: float = 0.0
    longest_decode_s: float = 0.0
    longest_dry_s: float = 0.0  # that the decoder had nothing to do while an image was ready

    def run(self, arrivals: Iterable[Arrival]) -> None:
        works: dict[int, list[tuple[int, Work]]] = {}
        pixels: dict[int, int] = {}
        steps_left: dict[int, int] = {}  # of jobs that are not decoded
        ready_at: dict[int, float] = {}
        order = itertools.count()
        events: list[tuple[float, int, Arrival | int | None]] = []  # an arrival, a decoded job, or a step done
        for arrival in arrivals:
            heapq.heappush(events, (arrival.at, next(order), arrival))
        held: set[int] = set()  # pictures
        outstanding = decoding = numbers = 0
        ranks_free = decoder_free = float("-inf")
        while events:
            now, _, event = heapq.heappop(events)
            if isinstance(event, Arrival):
                works[event.job.job_id] = self._works(event)
                steps_left[event.job.job_id] = event.job.steps
                to_start = sum(not left and job_id not in self.begun_at for job_id, left in steps_left.items())
                self.queued_at_arrival[event.job.job_id] = len(steps_left), sum(steps_left.values()) + to_start
                pixels[event.job.job_id] = event.job.width * event.job.height
                self.scheduler.add(
                    event.job,
                    segments=event.segments,
                    request=event.request,
                    priority=event.priority,
                    now=now,
                    state_bytes=event.state_bytes,
                )
            elif event is None:
                outstanding -= 1
            else:
                decoding -= 1
                assert steps_left.pop(event) == 0
                self.decoded_at[event] = now
                self.scheduler.decoded(event, now)
            while outstanding < STEPS_AHEAD:
                step = self.scheduler.next_step(now, idle=not (outstanding or decoding))
                if step is None:
                    break
                assert step.number == numbers
                numbers += 1
                for job in step.start:
                    assert job.job_id not in self.begun_at
                    self.begun_at[job.job_id] = now
                follow_pictures(step, held)
                for job_id in step.denoise:
                    assert job_id in self.begun_at
                    steps_left[job_id] -= 1
                seconds = _seconds(self.costs.encode_s(prompt_tokens(step.start)))
                seconds += _seconds(self.costs.encode_picture_s(sum(picture.pixels for picture in step.encode)))
                if step.denoise:
                    packed, took = zip(*(works[job_id].pop(0) for job_id in step.denoise), strict=True)
                    assert sum(packed) <= self.scheduler.token_budget or sum(map(bool, packed)) == 1
                    seconds += _seconds(self.costs.denoise_s(sum(took, NO_WORK)))
                self.longest_step_s = max(self.longest_step_s, seconds)
                ranks_free = max(now, ranks_free) + seconds
                outstanding += 1
                heapq.heappush(events, (ranks_free, next(order), None))
                worked = {*step.denoise, *(job.job_id for job in step.start)}
                ready_at |= {job_id: ranks_free for job_id in worked if not steps_left[job_id]}
                for job_id in step.decode:
                    assert steps_left[job_id] == 0
                    assert job_id in self.begun_at
                    self.longest_dry_s = max(self.longest_dry_s, ranks_free - max(decoder_free, ready_at[job_id]))
                    decode_s = _seconds(self.costs.decode_s(pixels[job_id]))
                    self.longest_decode_s = max(self.longest_decode_s, decode_s)
                    decoder_free = max(decoder_free, ranks_free) + decode_s
                    if self.scheduler.decodes_in_turn:
                        ranks_free = decoder_free
                    decoding += 1
                    heapq.heappush(events, (decoder_free, next(order), job_id))
                if self.on_step is not None:
                    self.on_step(step, now)
        assert not steps_left
        assert not held

    def _works(self, arrival: Arrival) -> list[tuple[int, Work]]:
        """What each step of a job has to do: its tokens at most, and what it does, if caching saves what it may."""
        job, plan = arrival.job, plan_of(arrival.job)
        if plan is None or not job.steps:
            return [(sum(arrival.segments), Work.of(arrival.segments))] * job.steps
        works = []
        for kinds in zip(*plan, strict=True):
            shares = {StepKind.COMPUTED: 1.0, StepKind.MAY_BE_CACHED: self.cached_share}
            halves = [(tokens, shares.get(kind, 0.0)) for tokens, kind in zip(arrival.segments, kinds, strict=True)]
            work = Work(
                round(sum(tokens * share for tokens, share in halves)),
                round(sum(tokens * tokens * share for tokens, share in halves)),
                max(share for _, share in halves),
            )
            works.append((sum(tokens for tokens, share in halves if share), work))
        return works


def _seconds(cost: float | None) -> float:
    assert cost is not None
    return cost
