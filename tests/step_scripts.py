"""Random sequences of steps, as a front-end may send them: images come and go, are cancelled, begin from pictures, and
name adapters."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.pictures.pixels import Pixels
from engine.step import Adapter, Job, Picture, Step
from engine.step_cache.settings import StepCache
from tests.engine_runs import jobs_of
from tests.oracle import Request

PROMPTS = ("", "a red circle on a blue background", "a small cyan star at the left on a black background " * 5)
# Pixels of an image that ranks decode together, up to 4 of them: it has rows enough for each.
DECODED_TOGETHER = (16, 240)


@dataclass(frozen=True)
class Life:
    """When a job starts, how many steps later it is cancelled, or how many after its last one it is decoded."""

    start: int
    cancelled: int | None
    decoded: int


@dataclass(frozen=True)
class Script:
    """What happens: each job, with its life."""

    jobs: tuple[Job, ...]
    lives: tuple[Life, ...]

    @property
    def pixels(self) -> dict[int, Pixels]:
        """Those of all pictures, by id."""
        return {job.picture.picture_id: pixels_of(job.picture) for job in self.jobs if job.picture is not None}

    def steps(self, adapters: Mapping[int, Adapter]) -> list[Step]:
        """An adapter is loaded with the first job that names it, and unloaded when none in flight does. A picture is
        encoded with the first job that begins from it, and forgotten with the last."""
        steps: list[Step] = []
        done: dict[int, int] = {}  # steps of each job in flight
        ended: dict[int, int] = {}  # at which step a job had its last one
        loaded: set[int] = set()
        held: set[Picture] = set()
        while len(steps) < 100:
            now, lives = len(steps), self.lives  # by job, whose ids count from 0
            start = [job for job in self.jobs if lives[job.job_id].start == now]
            release = [i for i in done if i not in ended and lives[i].start + (lives[i].cancelled or 100) == now]
            done |= {job.job_id: 0 for job in start}
            ended |= {job.job_id: now for job in start if not job.steps}
            encode = {job.picture for job in start if job.picture is not None} - held
            held |= encode
            forget = held - {job.picture for job in self.jobs if lives[job.job_id].start > now}
            held -= forget
            denoise = [i for i in done if i not in ended and i not in release]
            for i in denoise:
                done[i] += 1
                if done[i] == self.jobs[i].steps:
                    ended[i] = now
            decode = [i for i in done if i in ended and ended[i] + lives[i].decoded == now]
            for i in (*decode, *release):
                del done[i]
            load = {lora for job in start for lora, _ in job.loras} - loaded
            loaded |= load
            unload = loaded - {lora for i in done for lora, _ in self.jobs[i].loras}
            loaded -= unload
            steps.append(
                Step(
                    now,
                    start=tuple(start),
                    denoise=tuple(denoise),
                    decode=tuple(decode),
                    release=tuple(release),
                    load=tuple(adapters[i] for i in sorted(load)),
                    unload=tuple(sorted(unload)),
                    encode=tuple(sorted(encode, key=lambda picture: picture.picture_id)),
                    forget=tuple(sorted(picture.picture_id for picture in forget)),
                )
            )
            if not done and now >= max(life.start for life in self.lives):
                return steps
        raise AssertionError("the script does not end")


def scripts(adapters: Sequence[int]) -> st.SearchStrategy[Script]:
    """Of one to three images of any sizes, which name some of these adapters."""
    sides = st.tuples(*[st.integers(1, 6).map(lambda patches: 16 * patches)] * 2)
    lora = st.tuples(st.sampled_from(adapters), st.sampled_from([1.0, -0.7]))
    job = st.builds(
        _job,
        size=sides | st.just(DECODED_TOGETHER),
        prompts=st.tuples(*[st.sampled_from(PROMPTS)] * 2),
        steps=st.integers(1, 3),
        begins=st.sampled_from([None, (1, True), (2, False), (1, False), (0, True)]),
        guidance=st.sampled_from([0.0, 2.0]),
        preview_every=st.integers(0, 1),
        loras=st.lists(lora, max_size=2, unique_by=lambda pair: pair[0]).map(tuple),
        seed=st.integers(0, 2**32 - 1),
        cache=st.sampled_from([None, StepCache("velocity", warmup_steps=1, max_consecutive=1, order=0, max_cached=9)]),
        window=st.sampled_from([(0.0, 1.0), (0.0, 0.5), (0.4, 1.0)]),
    )
    life = st.builds(Life, st.integers(0, 2), st.sampled_from([None, None, None, 1, 2]), st.integers(0, 1))
    return st.lists(st.tuples(job, life), min_size=1, max_size=3).map(
        lambda pairs: Script(
            tuple(replace(job, job_id=index) for index, (job, _) in enumerate(pairs)),
            tuple(life for _, life in pairs),
        )
    )


def _job(
    *,
    size: tuple[int, int],
    prompts: tuple[str, str],
    steps: int,
    begins: tuple[int, bool] | None,
    guidance: float,
    preview_every: int,
    loras: tuple[tuple[int, float], ...],
    seed: int,
    cache: StepCache | None,
    window: tuple[float, float],
) -> Job:
    request = Request(prompts[0], *size, steps=steps, guidance=guidance, negative_prompt=prompts[1], seeds=(seed,))
    (job,) = jobs_of(DEMO_CHECKPOINT, [request])
    job = replace(job, preview_every=preview_every, loras=loras, cache=cache, guidance_window=window)
    if begins is None:
        return job
    skipped, masked = begins
    width, height = size
    picture = Picture(2 * (1000 * width + height) + masked, width, height, masked)  # jobs of a size share it
    return replace(job, picture=picture, skipped_steps=skipped, steps=steps if skipped < 2 else steps - 1)


def pixels_of(picture: Picture) -> Pixels:
    """The same noise each time: colours, and greys of a mask."""
    source, width, height = random.Random(picture.picture_id), picture.width, picture.height
    mask = source.randbytes(width * height // 64) if picture.masked else None
    return Pixels(width, height, source.randbytes(width * height * 3), mask)
