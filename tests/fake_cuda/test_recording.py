"""Graphs and kernels on the fake device: what they compute, and the rules for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from engine.kernels.norm import norm_triton, rms_norm
from tests.fake_cuda import FakeCuda
from tests.fake_cuda.graphs import graph_pool_handle
from tests.fake_cuda.helpers import CUDA, on_device, rules


class Recorded:
    """A function of `x` as a graph."""

    def __init__(self, run: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.x, self.stream = on_device(), torch.cuda.Stream()
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=graph_pool_handle(), stream=self.stream):
            self.output = run(self.x)

    def replay(self) -> list[float]:
        self.graph.replay()
        return self.output.tolist()


def test_a_replay_computes_anew_in_the_same_memory(device: FakeCuda) -> None:
    def run(x: torch.Tensor) -> torch.Tensor:
        y = torch.stack([x, torch.arange(4, device=CUDA).float()]).sum(0)
        return y.view(2, 2).mul_(2).flatten()[1:]

    recorded = Recorded(run)
    assert recorded.replay() == [4.0, 6.0, 8.0]
    recorded.x.copy_(torch.full((4,), 10.0))
    assert recorded.replay() == [22.0, 24.0, 26.0]
    device.check()


def test_recording_changes_nothing(device: FakeCuda) -> None:
    recorded = Recorded(lambda x: x.add_(1))
    assert recorded.x.tolist() == [1.0] * 4
    assert recorded.replay() == [2.0] * 4
    assert recorded.replay() == [3.0] * 4
    device.check()


@pytest.mark.parametrize(
    "run",
    [
        lambda x: x * x.sum().item(),
        lambda x: x + torch.ones(4).to(CUDA),
        lambda x: x + on_device(),
        lambda x: x + torch.tensor(1.0, device=CUDA),
        lambda x: torch.cuda.synchronize() or x + 1,
    ],
)
def test_a_graph_holds_no_wait_and_no_copy_from_the_host(
    device: FakeCuda, run: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    Recorded(run)
    assert rules(device) == {"capture"}


def test_a_graph_holds_no_memory_of_another_stream(device: FakeCuda) -> None:
    side = torch.cuda.Stream()

    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.cuda.stream(side):
            shift = torch.zeros(4, device=CUDA)
        return x + shift

    Recorded(run)
    assert rules(device) == {"capture"}


def test_what_a_recording_allocates_holds_nothing_before_a_replay(device: FakeCuda) -> None:
    """As a table that is made when it is first needed, and kept."""
    kept: list[torch.Tensor] = []

    def run(x: torch.Tensor) -> torch.Tensor:
        kept.append(x * 2)
        return kept[0] + 1

    recorded = Recorded(run)
    kept[0] + 1
    assert rules(device) == {"capture"}
    device.violations.clear()
    assert recorded.replay() == [3.0] * 4
    assert (kept[0] + 1).tolist() == [3.0] * 4
    device.check()


def test_a_replay_must_find_the_memory_that_was_recorded(device: FakeCuda) -> None:
    held = [on_device()]
    recorded = Recorded(lambda x: x + held[0])
    assert recorded.replay() == [2.0] * 4
    device.check()
    held.clear()
    recorded.graph.replay()
    assert rules(device) == {"capture"}


def test_replays_with_one_pool_must_not_overlap(device: FakeCuda) -> None:
    recorded, side = Recorded(lambda x: x + 1), torch.cuda.Stream()
    torch.cuda.synchronize()
    recorded.graph.replay()
    with torch.cuda.stream(side):
        recorded.graph.replay()
    assert rules(device) == {"unordered"}


# ---- Triton's kernels, in its interpreter


def test_a_kernel_is_an_operation_of_its_stream(device: FakeCuda) -> None:
    pytest.importorskip("triton")
    x, weight = on_device(32).view(2, 16), on_device(16)
    assert torch.equal(norm_triton(x, weight, 1e-5).cpu(), rms_norm(torch.ones(2, 16), torch.ones(16), 1e-5))
    device.check()
    fresh = on_device(16)
    with torch.cuda.stream(torch.cuda.Stream()):
        norm_triton(on_device(32).view(2, 16), fresh, 1e-5)
    assert rules(device) == {"unordered"}


def test_a_graph_holds_kernels(device: FakeCuda) -> None:
    pytest.importorskip("triton")
    weight = on_device(4)
    recorded = Recorded(lambda x: norm_triton(x[None] * 2, weight, 0.0)[0])
    assert recorded.replay() == [1.0] * 4
    recorded.x.copy_(torch.tensor([0.0, 0.0, 0.0, 3.0]))
    assert recorded.replay() == [0.0, 0.0, 0.0, 2.0]
    device.check()
