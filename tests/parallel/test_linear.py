"""Layers that are split over a group."""

from __future__ import annotations

import pytest
import torch

from bench.mesh_groups import AbsentGroup
from engine.kernels.fp8 import FP8, Fp8Rows, quantize_rows
from engine.kernels.int8 import quantize_groups
from engine.parallel import RowParallelLinear

IN, OUT, RANKS = 64, 48, 4


class WatchedGroup(AbsentGroup):
    """Rank 0 of several, which remembers what it was given to scatter."""

    scattered: torch.Tensor

    def reduce_scatter(self, tensor: torch.Tensor) -> torch.Tensor:
        self.scattered = tensor
        return super().reduce_scatter(tensor)


def matrix(group: WatchedGroup, form: str, weight: torch.Tensor) -> RowParallelLinear:
    """A rank's part, held in bfloat16 or in 8 bits."""
    layer = RowParallelLinear(IN * group.size, OUT, group, scatter=True)
    values, scales = weight, None
    if form == "int8":
        values, scales = quantize_groups(weight)
    elif form in ("fp8", "fp8 product"):
        values, scales, _ = quantize_rows(weight)
    layer.weight = torch.nn.Parameter(values, requires_grad=False)
    if scales is not None:
        layer.hold_eight_bit(scales, fp8_product=form == "fp8 product")
    return layer


@pytest.mark.parametrize("rows", [0, 1, 7, 8])
@pytest.mark.parametrize("form", ["bfloat16", "int8", "fp8", "fp8 product"])
@torch.inference_mode()
def test_a_product_is_scattered_where_it_was_written(form: str, rows: int) -> None:
    """Also where the ranks do not divide its rows, and with what an adapter adds: it is large, and never copied."""
    group = WatchedGroup(RANKS)
    layer = matrix(group, form, torch.randn(OUT, IN, dtype=torch.bfloat16))
    x: torch.Tensor | Fp8Rows = torch.randn(rows, IN, dtype=torch.bfloat16)
    if layer.takes_fp8:
        assert isinstance(x, torch.Tensor)
        x = quantize_rows(x)
    expected = layer.multiply(x) + 1
    products: list[torch.Tensor] = []

    def add_one(_: torch.Tensor | Fp8Rows, y: torch.Tensor) -> None:
        products.append(y)
        y.add_(1)

    layer.side_path = add_one
    share = layer(x)
    (product,) = products
    assert product.shape == (rows, OUT)
    assert torch.equal(product, expected)
    assert group.scattered.shape == (-(-rows // RANKS) * RANKS, OUT)
    assert group.scattered.data_ptr() == product.data_ptr() or not rows
    assert torch.equal(share, expected[: -(-rows // RANKS)])


def test_the_forms_differ() -> None:
    """Else the test above would look at one of them alone."""
    weight = torch.randn(OUT, IN, dtype=torch.bfloat16)
    layers = {form: matrix(WatchedGroup(RANKS), form, weight) for form in ("bfloat16", "int8", "fp8", "fp8 product")}
    assert [layer.weight.dtype for layer in layers.values()] == [torch.bfloat16, torch.int8, FP8, FP8]
    assert [layer.takes_fp8 for layer in layers.values()] == [False, False, False, True]
