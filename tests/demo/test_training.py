"""A training that is stopped and resumed is the training that was not."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from demo.training import Run, rate
from tests.damage import FULL, full_disk


def train(
    file: Path, until_step: int, total: int = 6, broken_at: int | None = None, terminated_at: int | None = None
) -> dict[str, Tensor]:
    """A small training by the optimizers that the demo uses; its weights and averages at the end."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizers = [torch.optim.Muon([model.weight], lr=0.0), torch.optim.AdamW([model.bias], lr=0.0)]
    run = Run(file, dict(model.named_parameters()), optimizers)
    for step in run.steps(until_step):
        if step == broken_at:
            raise KeyboardInterrupt
        if step == terminated_at:
            signal.raise_signal(signal.SIGTERM)
        batch = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        run.descend(model(batch).square().mean(), rate(step, total, 0.1, warmup=2))
    weights = {name: p.detach() for name, p in model.named_parameters()}
    return weights | {f"average of {name}": tensor for name, tensor in run.average.tensors.items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_resumed_after_a_stop(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole.safetensors", 6)
    train(tmp_path / "parts.safetensors", 4)
    assert_same(train(tmp_path / "parts.safetensors", 6), whole)


def test_resumed_after_an_interrupt(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole.safetensors", 6)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts.safetensors", 6, broken_at=3)
    assert_same(train(tmp_path / "parts.safetensors", 6), whole)


@pytest.fixture
def terminations() -> Iterator[list[int]]:
    """The SIGTERMs that come to a handler that was there before any training."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


def test_resumed_after_a_termination(tmp_path: Path, terminations: list[int]) -> None:
    whole = train(tmp_path / "whole.safetensors", 6)
    with pytest.raises(SystemExit) as ended:
        train(tmp_path / "parts.safetensors", 6, terminated_at=3)
    assert ended.value.code == 128 + signal.SIGTERM
    assert terminations == []
    assert_same(train(tmp_path / "parts.safetensors", 6), whole)


@pytest.mark.parametrize("how", ["to its end", "until interrupted", "until terminated"])
def test_a_signal_is_whose_it_was_before_the_training(how: str, tmp_path: Path, terminations: list[int]) -> None:
    if how == "to its end":
        train(tmp_path / "state.safetensors", 6)
    elif how == "until interrupted":
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "state.safetensors", 6, broken_at=3)
    else:
        with pytest.raises(SystemExit):
            train(tmp_path / "state.safetensors", 6, terminated_at=3)
    signal.raise_signal(signal.SIGTERM)
    assert terminations == [signal.SIGTERM]


def test_a_finished_training_is_left_as_it_is(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole.safetensors", 6)
    assert_same(train(tmp_path / "whole.safetensors", 6), whole)


def test_the_rate_rises_is_flat_and_falls_to_nothing() -> None:
    rates = [rate(step, 1000, 0.5) for step in range(1001)]
    assert rates[0] == pytest.approx(0.005)
    assert set(rates[99:501]) == {0.5}
    assert rates[501:] == sorted(rates[501:], reverse=True)
    assert rates[-1] == 0


def test_a_full_disk_is_told_with_the_states_name_and_leaves_the_last_state(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    run = Run(file, {"weight": nn.Parameter(torch.zeros(64))}, [])
    run.save()
    before = file.read_bytes()
    with full_disk(room=100), pytest.raises(SystemExit, match=f"{file} cannot be written: .*{FULL}"):
        run.save()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]
