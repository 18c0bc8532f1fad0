"""The steps that make the images of some jobs, as a front-end without limits would send them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.step import Adapter, Job, Step


def steps_of(jobs: Sequence[Job], starts: Sequence[int], adapters: Sequence[Adapter] = ()) -> Iterator[Step]:
    """Load the adapters, step all jobs to their end, and unload the adapters.

    starts: the step at which each job begins. A picture is encoded with the first job that begins from it, and
    forgotten with the last.
    """
    number, load = 0, tuple(adapters)
    remaining: dict[int, int] = {}
    held: set[int] = set()  # ids of pictures
    for step in range(max(starts, default=0) + max((job.steps for job in jobs), default=0) + 1):
        joining = tuple(job for job, start in zip(jobs, starts, strict=True) if start == step)
        later = {job.picture for job, start in zip(jobs, starts, strict=True) if start > step}
        pictures = dict.fromkeys(job.picture for job in joining if job.picture is not None)
        encode = tuple(picture for picture in pictures if picture.picture_id not in held)
        held |= {picture.picture_id for picture in pictures}
        remaining |= {job.job_id: job.steps for job in joining}
        if not remaining:
            continue
        yield Step(
            number,
            start=joining,
            denoise=tuple(job_id for job_id, steps in remaining.items() if steps),
            load=load,
            encode=encode,
            forget=tuple(picture.picture_id for picture in pictures if picture not in later),
        )
        number, load = number + 1, ()
        finished = tuple(job_id for job_id, steps in remaining.items() if steps <= 1)
        remaining = {job_id: steps - 1 for job_id, steps in remaining.items() if steps > 1}
        if finished:
            yield Step(number, decode=finished)
            number += 1
    if adapters:
        yield Step(number, unload=tuple(adapter.adapter_id for adapter in adapters))
