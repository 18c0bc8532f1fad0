"""Layers that are split over a group."""

from __future__ import annotations

import pytest
import torch

from bench.scaling.mesh_groups import AbsentGroup
from engine.kernels.fp8 import FP8, Fp8Rows, quantize_rows
from engine.kernels.int8 import quantize_groups
from engine.kernels.packing import Packing
from engine.parallel.group import LocalGroup
from engine.parallel.linear import ColumnParallelLinear, ParallelMatrix, RowParallelLinear
from engine.parallel.row_share import RowShare

IN, OUT, RANKS = 64, 48, 4


FORMS = ["bfloat16", "int8", "fp8", "fp8 product"]


class WatchedGroup(AbsentGroup):
    """Rank 0 of several, which remembers what it was given to scatter."""

    scattered: torch.Tensor

    def reduce_scatter(self, tensor: torch.Tensor) -> torch.Tensor:
        self.scattered = tensor
        return super().reduce_scatter(tensor)


def hold(layer: ParallelMatrix, form: str) -> None:
    """A random matrix in bfloat16 or in 8 bits."""
    weight = torch.randn(OUT, IN, dtype=torch.bfloat16)
    values, scales = weight, None
    if form == "int8":
        values, scales = quantize_groups(weight)
    elif form in ("fp8", "fp8 product"):
        values, scales, _ = quantize_rows(weight)
    layer.weight = torch.nn.Parameter(values, requires_grad=False)
    if scales is not None:
        layer.expect_eight_bit(scales, fp8_product=form == "fp8 product")


def rows_for(layer: ParallelMatrix, rows: int) -> torch.Tensor | Fp8Rows:
    """Random input."""
    x = torch.randn(rows, IN, dtype=torch.bfloat16)
    return quantize_rows(x) if layer.takes_fp8 else x


@pytest.mark.parametrize("rows", [0, 1, 7, 8])
@pytest.mark.parametrize("form", FORMS)
@torch.inference_mode()
def test_a_product_is_scattered_where_it_was_written(form: str, rows: int) -> None:
    """Also where the ranks do not divide its rows, and with what an adapter adds: it is large, and never copied."""
    group = WatchedGroup(RANKS)
    layer = RowParallelLinear(IN * RANKS, OUT, group)
    hold(layer, form)
    x = rows_for(layer, rows)
    expected = layer.multiply(x) + 1
    products: list[torch.Tensor] = []

    def add_one(_: torch.Tensor | Fp8Rows, y: torch.Tensor) -> None:
        products.append(y)
        y.add_(1)

    layer.side_path = add_one
    share = RowShare(Packing([rows], torch.device("cpu")), tensor=group)
    own = layer(x, share)
    (product,) = products
    assert product.shape == (rows, OUT)
    assert torch.equal(product, expected)
    assert group.scattered.shape == (-(-rows // RANKS) * RANKS, OUT)
    assert group.scattered.data_ptr() == product.data_ptr() or not rows
    assert torch.equal(own, expected[: -(-rows // RANKS)])


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("form", FORMS)
@torch.inference_mode()
def test_a_product_in_two_is_the_product(form: str, adapter: bool) -> None:
    layer = ColumnParallelLinear(IN, (OUT,), LocalGroup())
    hold(layer, form)
    if adapter:
        layer.side_path = lambda x, y: y.mul_(2).add_(torch.arange(OUT))
    x = rows_for(layer, 9)
    first, compute_others = layer.in_two(x, 32)
    assert first.shape == (9, 32)
    torch.testing.assert_close(torch.cat([first, compute_others()], dim=1), layer(x))


def test_the_forms_differ() -> None:
    """Else the tests above would look at one of them alone."""
    layers = [ColumnParallelLinear(IN, (OUT,), LocalGroup()) for _ in FORMS]
    for layer, form in zip(layers, FORMS, strict=True):
        hold(layer, form)
    assert [layer.weight.dtype for layer in layers] == [torch.bfloat16, torch.int8, FP8, FP8]
    assert [layer.takes_fp8 for layer in layers] == [False, False, False, True]
