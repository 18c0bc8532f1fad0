"""What is said of a decoded image."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest
import torch

from engine.config.engine_config import EngineConfig
from engine.parallel.mesh import Mesh
from engine.rank.image_decoder import DecodedImage
from engine.rank.rank import Rank
from engine.step import Job, Step
from tests.engine_runs import DEADLINE_S


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), None])
def test_an_image_says_whether_its_latents_are_numbers(turbo: Path, broken: float | None) -> None:
    images: queue.Queue[DecodedImage] = queue.Queue()
    rank = Rank(EngineConfig(model=str(turbo)), Mesh(), torch.device("cpu"), images.put)
    job = Job(0, tuple(range(50)), None, 64, 64, 1, 0.0, None, 0)
    rank.execute(Step(0, start=(job,), denoise=(0,)))
    if broken is not None:
        with torch.inference_mode():
            rank.jobs[0].latents[3, 5] = broken
    rank.execute(Step(1, decode=(0,)))
    assert images.get(timeout=DEADLINE_S).finite is (broken is None)
    rank.close()
