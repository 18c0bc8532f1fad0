"""What ranks do before they serve depends on what they will be asked for in their mode."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.engine_config import EngineConfig
from engine.model.vae_encoder import VAEEncoder
from engine.parallel.mesh import Mesh
from engine.rank.job_state import JobState
from engine.rank.rank import Rank
from engine.rank.step_handle import Preview
from engine.rank.warm_up import try_image
from tests.engine.parallel.thread_group import thread_meshes
from tests.engine_runs import DEADLINE_S, config_of

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "mode", "prompts"),
    [("raw", {"cfg_parallel": True}, [2, 1]), ("raw", {"sp": 2}, [1]), ("turbo", {"cfg_parallel": True}, [1])],
)
def test_a_guided_image_is_stepped_where_ranks_divide_guidance(
    request: pytest.FixtureRequest, name: str, mode: dict[str, int], prompts: list[int]
) -> None:
    folder: Path = request.getfixturevalue(name)
    config = EngineConfig(model=str(folder), device="cpu", **mode)  # type: ignore[arg-type]

    def work(mesh: Mesh) -> list[int]:
        rank, stepped = Rank(config, mesh, CPU), []
        denoise = rank.denoiser.step

        def spy(states: Sequence[JobState]) -> list[Preview]:
            stepped.append(sum(len(state.texts) for state in states))
            return denoise(states)

        rank.denoiser.step = spy  # type: ignore[method-assign]
        with torch.inference_mode():
            try_image(rank, 64, 64, decodes=False)
        assert rank.jobs == {}
        rank.close()
        return stepped

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, thread_meshes(config.degrees, DEADLINE_S))) == [prompts] * 2


@pytest.mark.parametrize(("image_input", "tuned"), [(True, [(48, 64)]), (False, [])])
def test_convolutions_are_tuned_for_pictures_where_they_may_go_in(
    monkeypatch: pytest.MonkeyPatch, image_input: bool, tuned: list[tuple[int, int]]
) -> None:
    seen, forward = [], VAEEncoder.forward

    def watched(self: VAEEncoder, pixels: torch.Tensor, **options: Any) -> torch.Tensor:
        if torch.backends.cudnn.benchmark:
            seen.append(tuple(pixels.shape[2:]))
        return forward(self, pixels, **options)

    monkeypatch.setattr(VAEEncoder, "forward", watched)
    for wait in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, wait, lambda *_: None)
    rank = Rank(config_of(DEMO_CHECKPOINT, image_input=image_input), Mesh(), CPU)
    with torch.inference_mode():
        try_image(rank, 64, 48, decodes=True)
    rank.close()
    assert seen == tuned
    assert not torch.backends.cudnn.benchmark
