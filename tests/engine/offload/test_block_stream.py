"""Blocks that are copied to the device in turn, beside work."""

from __future__ import annotations

import itertools
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config.engine_config import DIT_LAYERWISE
from engine.device.timing import seconds_between
from engine.model.layers import SwiGLU
from engine.offload import host_buffers
from engine.offload.host_buffers import HostMemory, WeightLedger
from engine.offload.offload import BlockStream
from tests.engine.offload.demo_rank import CPU, Timeline, draw, make_rank
from tests.engine_runs import DEADLINE_S


def run_slowly(monkeypatch: pytest.MonkeyPatch, prefetch: int) -> Timeline:
    """The timeline of two steps in which every block computes until the copies ahead of it have begun: for ever, if
    they wait for it."""
    forward, copy_bytes = SwiGLU.forward, host_buffers.copy_bytes
    computed = itertools.count(1)
    copies, another = 0, threading.Condition()

    def count(target: torch.Tensor, source: torch.Tensor) -> None:
        nonlocal copies
        with another:
            copies += 1
            another.notify()
        copy_bytes(target, source)

    def slow(module: SwiGLU, *arguments: Any) -> torch.Tensor:
        if module not in of_blocks:  # but the text encoder's or text fusion's
            return forward(module, *arguments)
        due = next(computed) + prefetch
        with another:
            assert another.wait_for(lambda: copies >= due, timeout=DEADLINE_S), f"{copies} copies have begun, not {due}"
        return forward(module, *arguments)

    monkeypatch.setattr(host_buffers, "copy_bytes", count)
    timeline = Timeline(monkeypatch, CPU)
    rank = make_rank(offload=(DIT_LAYERWISE,), prefetch=prefetch)
    of_blocks = {block.ff for block in rank.model.transformer.transformer_blocks}
    monkeypatch.setattr(SwiGLU, "forward", slow)
    timeline.watch(rank)
    draw(rank)
    return timeline


@pytest.mark.parametrize("prefetch", [1, 2])
def test_the_next_blocks_are_copied_while_one_computes(monkeypatch: pytest.MonkeyPatch, prefetch: int) -> None:
    timeline = run_slowly(monkeypatch, prefetch)
    computes, copies = timeline.computes, timeline.copies
    assert [span.block for span in computes] == [span.block for span in copies] == [*range(6), *range(6)]
    for index, compute in enumerate(computes):
        assert seconds_between(copies[index].ended, compute.began) >= 0  # not before it is there
        for ahead in copies[index + 1 : index + 1 + prefetch]:  # from block 5 on to block 0 of the next step
            assert seconds_between(ahead.began, compute.ended) > 0
        for later in copies[index + 1 + prefetch :]:
            assert seconds_between(compute.ended, later.began) >= 0  # its place is taken until then


def test_without_prefetch_nothing_is_copied_while_a_block_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    timeline = run_slowly(monkeypatch, 0)
    spans = [span for each in zip(timeline.copies, timeline.computes, strict=True) for span in each]
    for earlier, later in pairwise(spans):
        assert seconds_between(earlier.ended, later.began) >= 0


def test_blocks_that_stay_are_not_copied_and_those_that_do_not_are_spread(turbo: Path) -> None:
    rank = make_rank()
    rank.close()
    sizes = rank.model.offload.plan
    budget = int((sizes.needed - sizes.weights / 6) // 1)
    planned = make_rank(memory_budget=budget, offload=(DIT_LAYERWISE,), vae_memory=10**9)
    stream = planned.model.offload.streams["transformer"]
    assert tuple(stream._buckets) == planned.model.offload.plan.streamed
    assert 0 < len(planned.model.offload.plan.streamed) < len(planned.model.offload.plan.sizes.dit_blocks)
    draw(planned)
    assert planned.memory()["peak_weights"] <= planned.model.offload.plan.weights <= budget


def test_a_copy_that_fails_fails_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    rank = make_rank(offload=(DIT_LAYERWISE,))
    whole = host_buffers.copy_bytes
    left = [2]

    def fail(target: torch.Tensor, source: torch.Tensor) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("the bus is gone")
        whole(target, source)

    monkeypatch.setattr(host_buffers, "copy_bytes", fail)
    with pytest.raises(RuntimeError, match="the bus is gone"):
        draw(rank)


def stream_of(blocks: int, prefetch: int, copied: list[int]) -> tuple[BlockStream, list[torch.nn.Parameter]]:
    """A stream, and its blocks, which are full of their index; notes which it copies."""
    parameters = [torch.nn.Parameter(torch.full((4, 4), float(index)), requires_grad=False) for index in range(blocks)]
    buckets = {index: host_buffers.ParameterBucket([each], HostMemory(CPU)) for index, each in enumerate(parameters)}
    of_host = {bucket.host.data_ptr(): index for index, bucket in buckets.items()}
    copy = host_buffers.Copier.copy

    def count(copier: host_buffers.Copier, target: torch.Tensor, source: torch.Tensor) -> host_buffers.Wait:
        copied.append(of_host[source.data_ptr()])
        return copy(copier, target, source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_buffers.Copier, "copy", count)
        stream = BlockStream(buckets, prefetch, WeightLedger(CPU))
    stream._copier.copy = count.__get__(stream._copier)  # type: ignore[method-assign]
    return stream, parameters


@pytest.mark.parametrize(
    ("prefetch", "skipping", "running"),
    [
        (0, [1, 5, 0], [1, 2, 3, 4, 5, 0]),
        (1, [5, 1], [2, 3, 4, 5, 0, 1]),
        (2, [], [2, 3, 4, 5, 0, 1]),  # the slots hold all that skipping takes
        (7, [], []),
    ],
)
def test_a_pass_in_parts_copies_nothing_that_is_not_certain(
    prefetch: int, skipping: list[int], running: list[int]
) -> None:
    copied: list[int] = []
    stream, parameters = stream_of(6, prefetch, copied)

    def give(part: range, ahead: int = 6) -> None:
        assert [float(parameter.mean()) for parameter in stream.visit(parameters, part, ahead)] == list(part)

    give(range(6))
    for number, skips in enumerate((True, True, False, True, False, False, True)):
        before = len(copied)
        give(range(2), ahead=2)  # here it is decided
        if not skips:
            give(range(2, 5))
        give(range(5, 6))
        if number:  # the first of these passes finds what a whole one has left it
            assert copied[before:] == (skipping if skips else running)
        assert len(copied) <= before + len(running)
    give(range(6))
    stream.rewind()
    give(range(6))
    stream.close()


def test_a_stream_gives_every_block_its_own_weights_pass_after_pass() -> None:
    parameters = [torch.nn.Parameter(torch.full((4, 4), float(index)), requires_grad=False) for index in range(5)]
    travelling = {index: host_buffers.ParameterBucket([parameters[index]], HostMemory(CPU)) for index in (1, 2, 4)}
    stream = BlockStream(travelling, 1, WeightLedger(CPU))
    for _ in range(3):
        assert [float(parameter.sum()) for parameter in stream.visit(parameters)] == [0.0, 16.0, 32.0, 48.0, 64.0]
    stream.close()
