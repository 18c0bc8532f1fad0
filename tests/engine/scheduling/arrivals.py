"""Requests that arrive, of the sizes that people ask for."""

from __future__ import annotations

import math

from engine.step import Picture
from engine.step_cache.settings import StepCache
from tests.virtual_ranks import Arrival, make_job

SIZES = (256, 1024, 2304, 4096)  # image tokens of 256², 512², 768² and 1024²
TEXT = 60
BUDGET = 8192


def arrival(
    job_id: int,
    *,
    at: float,
    tokens: int,
    steps: int,
    request: int | None = None,
    guided: bool = False,
    priority: int = 0,
    picture_id: int | None = None,
    cache: StepCache | None = None,
) -> Arrival:
    side = 16 * math.isqrt(tokens)
    picture = None if picture_id is None else Picture(picture_id, side, side)
    segments = (tokens + TEXT,) * (2 if guided else 1)
    prompt = (job_id, *range(TEXT))
    job = make_job(job_id, steps=steps, prompt=prompt, width=side, height=side, picture=picture, cache=cache)
    return Arrival(at, job, segments, job_id if request is None else request, priority)
