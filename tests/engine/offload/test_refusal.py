"""A rank looks whether there is room for the model, together with the others, before any of them reads a weight."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from bench.engines.real_size import KREA2, TINY, RandomWeights
from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.engine_config import DIT_LAYERWISE, TEXT_ENCODER, EngineConfig
from engine.device.host_memory import HostMemory
from engine.errors import LaunchError
from engine.offload import refusal
from engine.offload.refusal import check_room, find_room
from engine.planning.memory_plan import MemoryPlan, plan_checkpoint
from engine.planning.room import Room
from engine.rank import build
from engine.rank.rank import Rank
from tests.engine.offload.demo_rank import CPU, make_rank
from tests.engine.offload.hollow_checkpoint import write_hollow_checkpoint
from tests.engine.parallel.thread_group import thread_groups
from tests.engine_runs import on_ranks

SMALL_MACHINE = HostMemory(total=24 * 10**9, available=21 * 10**9)


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine in which nobody may read a weight."""

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a weight is read")

    monkeypatch.setattr(HostMemory, "read", staticmethod(lambda *_: SMALL_MACHINE))
    monkeypatch.setattr(build, "load_weights", load)


@pytest.mark.usefixtures("small_machine")
def test_a_checkpoint_of_the_real_size_is_refused_on_a_small_machine_before_anything_is_read(tmp_path: Path) -> None:
    folder = write_hollow_checkpoint(tmp_path / "krea", KREA2)
    with pytest.raises(
        LaunchError, match=r"^the model needs 67\.15 GB .* float32, and 21\.00 GB are available: nothing"
    ):
        make_rank(str(folder))
    with pytest.raises(AssertionError, match="a weight is read"):
        make_rank("demo")


@pytest.mark.parametrize("options", [{}, {"tp": 2}, {"sp": 2, "dtype": "bfloat16"}, {"quantization": "int8"}])
@pytest.mark.parametrize("offload", [(), (DIT_LAYERWISE, TEXT_ENCODER)])
def test_no_more_is_asked_for_than_weights_will_lie_in(options: dict[str, Any], offload: tuple[str, ...]) -> None:
    """So nothing is refused that could be loaded."""
    engine = EngineConfig(model="demo", offload=offload, **options)
    held = on_ranks(DEMO_CHECKPOINT, weights_of, offload=offload, **options)
    (plan, *_) = (plan for _, plan in held)
    needed = Room(device=None, host=None, ranks=engine.ranks).on_host(plan, engine)
    assert needed <= sum(taken for taken, _ in held) * 33 / 32


def weights_of(rank: Rank) -> tuple[int, MemoryPlan]:
    offload = rank.model.offload
    return offload.ledger.resident + offload.host_bytes, offload.plan


def test_all_ranks_refuse_what_one_has_no_room_for() -> None:
    weights, engine = RandomWeights(TINY, CPU), EngineConfig(model="tiny", tp=2)
    plan = plan_checkpoint(weights, engine, 4, budget=None)

    def check(group: Any, host: int) -> str:
        with pytest.raises(LaunchError) as caught:
            check_room(plan, weights, engine, Room(None, host), CPU, rank=group.rank, ranks=2, share=group.all_reduce)
        return caught.value.message

    with ThreadPoolExecutor(2) as threads:
        messages = [*threads.map(check, thread_groups(2), (10**12, 1000))]
    assert messages[0].startswith("rank 1 needs ")
    assert messages[1].startswith("the model needs ")


def test_a_gpu_that_shares_memory_with_the_host_has_what_the_host_has(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    monkeypatch.setattr(HostMemory, "read", staticmethod(lambda *_: SMALL_MACHINE))
    monkeypatch.setattr(refusal, "free_bytes", lambda _: 10**9)
    monkeypatch.setattr(refusal, "multiplies_fp8", lambda *_: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for integrated, free in ((False, 10**9 // 2), (True, 21 * 10**9 // 2)):
        properties = SimpleNamespace(is_integrated=integrated)
        monkeypatch.setattr(torch.cuda, "get_device_properties", Mock(return_value=properties))
        assert find_room(device, 2, 2, is_split=False).device == free
