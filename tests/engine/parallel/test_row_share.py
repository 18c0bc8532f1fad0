"""Rows that ranks share, and attention between them. That pictures do not depend on it is in `test_parallel_modes`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from bench.scaling.mesh_groups import AbsentGroup
from engine.config.degrees import Degrees
from engine.kernels.attention.backends import GatedAttentionKernel
from engine.kernels.fp8 import Fp8Rows, quantize_rows
from engine.kernels.packing import Packing
from engine.model.layers import GatedAttention
from engine.parallel.group import Group, LocalGroup
from engine.parallel.linear import ParallelMatrix
from engine.parallel.mesh import Mesh
from engine.parallel.row_share import RowShare
from tests.engine.parallel.test_group import DEADLINE_S, run_threads
from tests.engine.parallel.thread_group import thread_groups, thread_meshes

WIDTH, HEADS, KV_HEADS, HEAD_DIM = 64, 4, 2, 16
QKV, GATE = (HEADS + 2 * KV_HEADS) * HEAD_DIM, HEADS * HEAD_DIM


class BackgroundGroup(AbsentGroup):
    """Notes when an exchange begins, and when somebody waits for it."""

    def __init__(self, size: int, events: list[str]) -> None:
        super().__init__(size)
        self._events = events

    def begin_all_to_all(
        self, tensor: torch.Tensor, sent: Sequence[int], received: Sequence[int]
    ) -> Callable[[], torch.Tensor]:
        self._events.append("begin")
        result = self.all_to_all(tensor, sent, received)

        def wait() -> torch.Tensor:
            self._events.append("wait")
            return result

        return wait


@pytest.mark.parametrize("adapter", [False, True])
@torch.inference_mode()
def test_the_gate_is_computed_while_heads_are_exchanged(monkeypatch: pytest.MonkeyPatch, adapter: bool) -> None:
    """But for a matrix that an adapter adds to: it adds to all of the product at once."""
    events: list[str] = []
    multiply = ParallelMatrix.multiply

    def watched(matrix: ParallelMatrix, *arguments: Any, **options: Any) -> torch.Tensor:
        y = multiply(matrix, *arguments, **options)
        events.append(f"product of {y.shape[1]}")
        return y

    monkeypatch.setattr(ParallelMatrix, "multiply", watched)
    layer = GatedAttention(WIDTH, HEADS, KV_HEADS, HEAD_DIM, 1e-5, LocalGroup(), GatedAttentionKernel())
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    share = RowShare(Packing([10, 3], torch.device("cpu")), BackgroundGroup(2, events))
    if adapter:
        layer.qkvg.side_path = lambda x, y: None
    layer(torch.randn(share.multiplied.tokens, WIDTH), share, None)
    out = f"product of {WIDTH}"
    if adapter:
        assert events == [f"product of {QKV + GATE}", "begin", "wait", out]
    else:
        assert events == [f"product of {QKV}", "begin", f"product of {GATE}", "wait", out]


@pytest.mark.parametrize("rows", [7, 8, 2])
def test_fp8_rows_come_with_their_own_scales(rows: int) -> None:
    whole = quantize_rows(torch.randn(rows, 16) * torch.arange(1, rows + 1)[:, None])
    packing = Packing([rows], torch.device("cpu"))

    def check(group: Group) -> None:
        share = RowShare(packing, tensor=group)
        own = Fp8Rows(share.take_own(whole.values), share.take_own(whole.scales), whole.dtype)
        gathered = share.gather(own)
        assert isinstance(gathered, Fp8Rows)
        assert torch.equal(gathered.dequantize(), whole.dequantize())

    run_threads(thread_groups(4, DEADLINE_S), check)


@pytest.mark.parametrize("lengths", [(5, 1, 9, 3), (1, 2), (0, 17, 1)])
def test_whole_segments_are_gathered_of_own_rows(lengths: tuple[int, ...]) -> None:
    """Of any of them, however the ranks' parts cut them: by sequence, by tensor, and by both."""
    packing = Packing(lengths, torch.device("cpu"))
    whole = torch.arange(packing.tokens)[:, None].repeat(1, 3)
    parts = whole.split(lengths)

    def check(mesh: Mesh) -> None:
        share = RowShare(packing, mesh.sp, mesh.tp)
        own = [part[share.own_of(segment)] for segment, part in enumerate(parts)]
        assert torch.equal(torch.cat(own), share.take_own(whole))
        for chosen in ([0], [1], [0, len(lengths) - 1], list(range(len(lengths)))):
            gathered = share.gather_segments(torch.cat([own[segment] for segment in chosen]), chosen)
            assert torch.equal(gathered, torch.cat([parts[segment] for segment in chosen]))
        offsets = share.gather_of_each(share.own.offsets)
        assert offsets.shape == (share.ranks, len(lengths) + 1)
        assert offsets[:, -1].sum() == packing.tokens

    for degrees in (Degrees(), Degrees(sp=4), Degrees(tp=2), Degrees(tp=2, sp=2)):
        meshes = {mesh.world: mesh for mesh in thread_meshes(degrees, DEADLINE_S)}
        run_threads(list(meshes), lambda world, meshes=meshes: check(meshes[world]))
