"""Starting latents are drawn in a thread of the rank's own while it encodes prompts, and are no others for that."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from engine.config.engine_config import EngineConfig
from engine.parallel.mesh import Mesh
from engine.rank.rank import Rank
from engine.rank.sampling import draw_noise
from engine.step import Job, Step
from tests.engine_runs import DEADLINE_S

JOBS = tuple(Job(i, tuple(range(40 + i)), None, 48 + 16 * i, 64, 2, 0.0, None, 7 + i) for i in range(3))
START = Step(0, start=JOBS)


@pytest.fixture
def rank() -> Iterator[Rank]:
    rank = Rank(EngineConfig(dtype="bfloat16"), Mesh(), torch.device("cpu"))
    yield rank
    rank.close()


def test_noise_is_drawn_beside_the_encoding_of_prompts(rank: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    encodes, drawn = threading.Event(), threading.Event()
    encode = rank.prompts.encode

    def draw_once_it_encodes(*arguments: Any) -> torch.Tensor:
        assert encodes.wait(DEADLINE_S)
        drawn.set()
        return draw_noise(*arguments)

    def encode_until_one_is_drawn(prompts: Any) -> Any:
        encodes.set()
        assert drawn.wait(DEADLINE_S)
        return encode(prompts)

    monkeypatch.setattr("engine.rank.job_state.draw_noise", draw_once_it_encodes)
    monkeypatch.setattr(rank.prompts, "encode", encode_until_one_is_drawn)
    rank.execute(START).wait()
    for job in JOBS:
        expected = draw_noise(job.seed, job.width, job.height, rank.model.config, torch.bfloat16)
        assert torch.equal(rank.jobs[job.job_id].latents, expected)


def test_what_goes_wrong_in_drawing_is_raised_by_the_step(rank: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(seed: int, *_: Any) -> torch.Tensor:
        raise ZeroDivisionError(f"seed {seed}")

    monkeypatch.setattr("engine.rank.job_state.draw_noise", broken)
    with pytest.raises(ZeroDivisionError, match="seed 7"):
        rank.execute(START)


def test_nothing_more_is_drawn_once_encoding_has_failed(rank: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    began, fails = threading.Event(), threading.Event()
    seeds: list[int] = []

    def draw(seed: int, *_: Any) -> torch.Tensor:
        seeds.append(seed)
        began.set()
        assert fails.wait(DEADLINE_S)
        return torch.zeros(1)

    def encode(_: Any) -> Any:
        assert began.wait(DEADLINE_S)
        raise ZeroDivisionError

    monkeypatch.setattr("engine.rank.job_state.draw_noise", draw)
    monkeypatch.setattr(rank.prompts, "encode", encode)
    with pytest.raises(ZeroDivisionError):
        rank.execute(START)
    fails.set()
    rank.close()
    assert seeds == [7]


def test_a_closed_rank_has_no_thread_left() -> None:
    before = set(threading.enumerate())
    rank = Rank(EngineConfig(), Mesh(), torch.device("cpu"))
    rank.execute(START).wait()
    assert any(thread.name.startswith("noise") for thread in set(threading.enumerate()) - before)
    rank.close()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("noise")]
