"""The life of one request whose client asks for it: each stage, from what the ranks have reported of their steps. Pure.

A rank says how long it took, not when: a stage ends when its report was heard, or before, if what follows shows that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.scheduling.step_work import DoneWork
from engine.step import Picture, StepTimes
from launcher.explanation import Explanation, Stage, add_up, timeline
from launcher.messages.rank_messages import DoneStep
from launcher.requests.check import CheckedRequest
from launcher.requests.explained.floors import Floors
from launcher.requests.plan import Plan


@dataclass(frozen=True)
class _Told:
    """A step of some of the request's images, by index, of which this was step `steps`, from 1; of images of no steps,
    what started them."""

    done: DoneStep
    images: tuple[int, ...]
    steps: tuple[int, ...]
    starts: bool  # its first images


@dataclass(frozen=True)
class _Decoded:
    image: int
    decode_s: float
    came: float


class Life:
    """Notes what becomes of a request and its jobs. Times are seconds of one clock: when it came, when the picture that
    it begins from was read, if it does, when filters had answered, if there are any, and when it was accepted."""

    def __init__(
        self,
        checked: CheckedRequest,
        plan: Plan,
        model: ModelConfig,
        engine: EngineConfig,
        *,
        came: float,
        accepted: float,
        read: float | None = None,
        filtered: float | None = None,
    ) -> None:
        self._checked, self._plan, self._floors = checked, plan, Floors(model, engine)
        self._came, self._ended = came, accepted
        self._waits_since = self._begun = accepted
        self._index = {job.job_id: index for index, job in enumerate(plan.jobs)}
        self._attempt = 1
        since, self._stages = came, []
        for name, until in (("read_picture", read), ("filter_prompt", filtered), ("check", accepted)):
            if until is not None:
                self._stages.append(self._stage(name, since, until))
                since = until
        self._told: list[_Told] = []  # of this attempt, as the next
        self._decoded: list[_Decoded] = []
        self._steps_done: Counter[int] = Counter()

    @property
    def is_told(self) -> bool:
        """Whether the ranks have said all there is of the images that have come."""
        return all(self._steps_done[each.image] == self._last_step for each in self._decoded)

    @property
    def _last_step(self) -> int:
        return max(1, self._checked.steps)

    def begin(self, now: float) -> None:
        """Note that its first step is sent."""
        self._begun = now

    def stepped(self, job_ids: Sequence[int], done: DoneStep) -> None:
        """Note that all ranks have executed a step of these of its jobs."""
        images = tuple(self._index[job_id] for job_id in job_ids)
        self._steps_done.update(images)
        starts = any(job.job_id in self._index for job in done.step.start)
        self._told.append(_Told(done, images, tuple(self._steps_done[image] for image in images), starts))
        for rank, (_, times) in done.by_rank.items():
            if times.reach is not None:
                self._floors.reach[rank] = times.reach

    def decoded(self, job_id: int, decode_s: float, came: float) -> None:
        """Note that an image has come, which took the decoder `decode_s`."""
        self._decoded.append(_Decoded(self._index[job_id], decode_s, came))

    def filtered(self, job_id: int, came: float, now: float) -> None:
        """Note that filters have answered about an image that came at `came`."""
        self._stages.append(self._stage("filter_image", came, now, images=(self._index[job_id],)))

    def written(self, job_id: int, began: float, now: float) -> None:
        """Note that a file has been made of an image, since `began`: when it came, or filters had answered."""
        self._stages.append(self._stage("file", began, now, images=(self._index[job_id],)))
        self._ended = now

    def start_over(self, now: float) -> None:
        """Note that the ranks are lost, with all that they had of it but images that have come."""
        self._end_attempt()
        last_s = max(stage.end_s for stage in self._stages if stage.attempt == self._attempt)
        self._stages.append(self._stage("lost", self._came + last_s, now))
        self._attempt += 1
        self._waits_since = self._begun = now
        self._steps_done.clear()

    def explain(self) -> Explanation:
        """Say where the time went, once all images have come and are files."""
        self._end_attempt()
        checked, plan, job = self._checked, self._plan, self._plan.jobs[0]
        stages = sorted(self._stages, key=lambda stage: (stage.begin_s, stage.end_s))
        total_s = self._ended - self._came
        engine, reach = self._floors.engine, self._floors.reach.get(0)
        return Explanation(
            total_s=total_s,
            clock_s=self._came,
            parts=add_up(timeline(stages, total_s)),
            mode=engine.degrees.name,
            device="" if reach is None else reach.device,
            ranks=engine.ranks,
            num_images=checked.num_images,
            width=checked.width,
            height=checked.height,
            steps=checked.steps,
            attempt=self._attempt,
            prompt_tokens=tuple(map(len, job.prompts)),
            segments=plan.segments,
            image_tokens=self._floors.model.image_tokens(checked.width, checked.height),
            floor_source=self._floors.source,
            notes=tuple(self._notes()),
            stages=tuple(stages),
        )

    def _notes(self) -> Iterable[str]:
        checked, engine = self._checked, self._floors.engine
        if self._attempt > 1:
            times = "once" if self._attempt == 2 else f"{self._attempt - 1} times"
            yield f"the ranks died {times}, and its images that had not come were begun again"
        if checked.preview_every is not None:
            yield f"previews, after every {checked.preview_every} steps of an image, are drawn within steps"
        if engine.offload or engine.memory_budget is not None:
            yield "what is copied from host memory in a step is part of its time, and not of its floor"
        if engine.decodes_together and engine.ranks > 1:
            yield "ranks decode an image together where its height allows it; rank 0 says how long that took"

    # ---- an attempt, from what was reported to when it was

    def _end_attempt(self) -> None:
        told = sorted(self._told, key=lambda each: each.done.step.number)
        decoded = self._place_decoding()
        spans = {rank: self._place_steps(rank, told, decoded) for rank in range(self._floors.engine.ranks)}
        self._stages.append(self._stage("queue", self._waits_since, self._begun))
        before, over = None, self._begun  # the step before one, and since when the request waits
        ends: dict[int, float] = {}  # when the latest step of each image was over
        for position, each in enumerate(told):
            of_ranks = [spans[rank][position] for rank in spans]
            if self._is_behind_others(before, each):
                self._stages.append(self._stage("denoise_queue", over, min(begin for begin, _ in of_ranks)))
            before, over = each, max(end for _, end in of_ranks)
            ends |= dict.fromkeys(each.images, over)
        for image, (begin, end) in decoded.items():
            if image in ends:
                self._stages.append(self._stage("decode_queue", ends[image], begin, images=(image,)))
            floor_s = self._floors.decode_s(self._checked.width, self._checked.height)
            self._stages.append(self._stage("decode", begin, end, rank=0, images=(image,), floor_s=floor_s))
        self._told, self._decoded = [], []

    def _is_behind_others(self, before: _Told | None, told: _Told) -> bool:
        """Whether ranks did something for others between two of its steps; the first is None before its first."""
        if before is None:
            return told.done.behind
        times = told.done.times
        encoded = not told.starts and (times.encoded_tokens > 0 or times.encoded_pixels > 0)
        decoded = set(before.done.step.decode) - self._index.keys()  # in turn with steps, where ranks do that together
        return encoded or bool(decoded) or told.done.step.number > before.done.step.number + 1

    def _place_decoding(self) -> dict[int, tuple[float, float]]:
        """When each image was decoded: one after the other, each until it came at the latest."""
        placed: dict[int, tuple[float, float]] = {}
        later = math.inf
        for each in sorted(self._decoded, key=lambda each: -each.came):
            end = min(each.came, later)
            later = max(end - each.decode_s, min(self._waits_since, end))
            placed[each.image] = (later, end)
        return placed

    def _place_steps(
        self, rank: int, told: Sequence[_Told], decoded: dict[int, tuple[float, float]]
    ) -> list[tuple[float, float]]:
        """Add the stages of a rank's steps. Returns when each began to denoise or, if it encoded for this request, to
        do that, and when it was over."""
        spans = []
        later = math.inf
        for each in reversed(told):
            heard, times = each.done.by_rank[rank]
            ready = [
                decoded[image][0]
                for image, step in zip(each.images, each.steps, strict=True)
                if step == self._last_step and image in decoded
            ]
            end = max(min(heard - times.late_s, later, *ready), each.done.sent)
            denoise = max(end - times.denoise_s, each.done.sent)
            encode = max(denoise - times.encode_s, each.done.sent)
            picture = max(encode - times.picture_s, each.done.sent)
            later = max(picture - times.reach_s, each.done.sent)
            begin = self._add_step(rank, each, times, (later, picture, encode, denoise, end))
            spans.append((begin, end))
        return spans[::-1]

    def _add_step(
        self, rank: int, told: _Told, times: StepTimes, bounds: tuple[float, float, float, float, float]
    ) -> float:
        found, picture, encode, denoise, end = bounds
        own = set(self._index)
        if times.reach_s and told.starts:
            self._stages.append(self._stage("reach", found, picture, rank=rank))
        if told.starts and encode > picture:
            self._stages.append(self._encode_picture(rank, told.done.step.encode, picture, encode))
        if told.starts:
            jobs = [job for job in told.done.step.start if job.job_id in own]
            others = len(told.done.step.start) - len(jobs)
            self._stages.append(
                self._stage(
                    "encode_text",
                    encode,
                    denoise,
                    rank=rank,
                    images=tuple(self._index[job.job_id] for job in jobs),
                    others=others,
                    tokens=times.encoded_tokens,
                    floor_s=None if told.done.behind else self._floors.encode_s(rank, times.encoded_tokens),
                    how=_kept(sum(map(len, {ids for job in jobs for ids in job.prompts})), times.encoded_tokens),
                )
            )
        if not self._checked.steps:
            self._stages.append(self._stage("denoise_queue", denoise, end))
        elif told.images:
            did = told.done.did or DoneWork(told.done.work)
            self._stages.append(
                self._stage(
                    "denoise",
                    denoise,
                    end,
                    rank=rank,
                    images=told.images,
                    steps=told.steps,
                    others=len(set(told.done.step.denoise) - own),
                    tokens=told.done.work.tokens,
                    floor_s=self._floors.denoise_s(rank, did.work),
                    how="one by one" if times.one_by_one else "graph" if times.graph else _saved(did),
                )
            )
        return found if told.starts else denoise

    def _encode_picture(self, rank: int, pictures: Sequence[Picture], begin: float, end: float) -> Stage:
        """What a step that starts images of the request does before their prompts are encoded."""
        own = self._plan.jobs[0].picture
        if own not in pictures:
            return self._stage("denoise_queue", begin, end)
        return self._stage(
            "encode_picture",
            begin,
            end,
            rank=rank,
            others=len(pictures) - 1,
            floor_s=self._floors.encode_picture_s(rank, pictures),
            how=f"{own.width} × {own.height}" if own is not None else "",
        )

    def _stage(self, name: str, begin: float, end: float, **fields: Any) -> Stage:
        return Stage(
            name=name, begin_s=begin - self._came, end_s=max(begin, end) - self._came, attempt=self._attempt, **fields
        )


def _saved(did: DoneWork) -> str:
    """Say whether a step has left blocks out, of any of its images."""
    if not did.saved:
        return ""
    return "some blocks" if did.blocks else "no blocks"


def _kept(asked: int, encoded: int) -> str:
    """Say whether prompts of so many tokens were encoded; others' may have been, too."""
    if not encoded:
        return "kept from before"
    return "" if encoded >= asked else "in part kept from before"
