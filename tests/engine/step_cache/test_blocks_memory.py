"""What blocks that are left out take of memory, against what is planned for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.config.degrees import Degrees
from engine.config.engine_config import EngineConfig
from engine.parallel.mesh import Mesh
from engine.planning.step_memory import cache_bytes
from engine.rank.rank import Rank
from engine.step import Job, Step
from engine.step_cache.settings import StepCache
from tests.engine.planning.test_step_memory import DEMO, TEXT_TOKENS, peak_bytes

STEPS = 6
PROMPT = tuple(range(34 + TEXT_TOKENS))


@pytest.mark.parametrize(
    ("dtype", "order", "beside"),
    [
        ("float32", 1, True),
        pytest.param("float32", 0, False, marks=pytest.mark.slow),
        pytest.param("bfloat16", 1, False, marks=pytest.mark.slow),
        pytest.param("bfloat16", 2, True, marks=pytest.mark.slow),
    ],
)
def test_they_take_no_more_than_is_planned(dtype: str, order: int, beside: bool) -> None:
    """What is held, and what a step takes for it: alone, and beside an image that goes on when it rests."""
    cache = StepCache("blocks", 3, 1, order, 200, threshold=100.0)
    rank = Rank(EngineConfig(dtype=dtype), Mesh(), torch.device("cpu"))
    job = Job(0, PROMPT, PROMPT, 128, 192, STEPS, 2.0, None, 0)
    others = [Job(1, PROMPT, None, 128, 128, STEPS, 0.0, None, 1)] if beside else []

    def peak(first: int, jobs: list[Job]) -> int:
        """Of all steps from the first, whose number this is. Earlier jobs are let go of."""
        ids = tuple(job.job_id for job in jobs)
        rank.execute(Step(first, start=tuple(jobs), release=tuple(rank.jobs)))

        def denoise() -> None:
            for step in range(1, STEPS):
                rank.execute(Step(first + step, denoise=ids))

        return peak_bytes(denoise)

    computed = peak(0, [job, *others])
    saved = peak(STEPS, [replace(each, job_id=each.job_id + 2) for each in (replace(job, cache=cache), *others)])
    tokens = DEMO.image_tokens(job.width, job.height)
    planned = cache_bytes(DEMO, cache, [tokens + TEXT_TOKENS] * 2, tokens, Degrees(), rank.model.dtype.itemsize)
    assert 0.4 * planned < saved - computed <= planned
    rank.close()
