"""Attention in chunks of queries, its weights by reference and by kernel, against torch's own and float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from engine.kernels.attention.chunked import chunked_attention, weigh, weigh_triton
from tests.engine.kernels.tolerances import DTYPES, poisoned, relative_error

SHAPES = [  # images, queries, keys, width
    (1, 1, 1, 8),
    (2, 37, 37, 24),
    (1, 100, 100, 5),
    (3, 13, 61, 16),  # a rank's own rows of an image
    (1, 300, 300, 384),
]
WHOLE = 10**9  # bytes


def drawn(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k and v as the decoder has them: columns of one matrix, k and v perhaps of more rows."""
    images, queries, keys, width = shape
    query = torch.randn(images, queries, 3 * width).mul(1.5).to(dtype)[..., :width]
    key, value = torch.randn(images, keys, 2 * width).mul(1.5).to(dtype).chunk(2, dim=-1)
    return query, key, value


def bytes_of(shape: tuple[int, ...], queries: int, dtype: torch.dtype) -> int:
    """The bytes that `queries` queries at once need."""
    return queries * -(-shape[2] // 16) * 16 * (4 + dtype.itemsize)


@pytest.mark.parametrize("at_once", [1, 7, 64, None])
@pytest.mark.parametrize("shape", SHAPES)
def test_chunks_give_what_the_formula_gives_for_all_queries(shape: tuple[int, ...], at_once: int | None) -> None:
    query, key, value = drawn(shape, torch.float32)
    room = WHOLE if at_once is None else bytes_of(shape, at_once, torch.float32)
    with poisoned(torch.device("cpu")):
        actual = chunked_attention(query, key, value, room)
    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    # as a whole: of 100,000 numbers one may depend on two large scores, which float32 has by 1e-5 alone
    assert relative_error(actual, expected) <= 1e-5
    assert actual.is_contiguous()


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_in_bfloat16_it_is_as_close_to_float64_as_torch(shape: tuple[int, ...]) -> None:
    images, *sizes = shape
    query, key, value = drawn((20 * images, *sizes), torch.bfloat16)  # of fewer the errors differ by chance, too
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    # with heads, as the decoder calls it: torch's kernels then round the weights, as those for a GPU do
    theirs = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]
    actual = chunked_attention(query, key, value, bytes_of(shape, 20, torch.bfloat16))
    assert actual.dtype == torch.bfloat16
    assert (actual.double() - exact).norm() <= 1.05 * (theirs.double() - exact).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_take_no_more_than_the_room(dtype: torch.dtype) -> None:
    shape = (1, 130, 130, 24)
    sizes: list[int] = []

    class Allocations(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.new_empty.default:
                sizes.append(result.nbytes)
            return result

    for at_once in (1, 33, 129):
        sizes.clear()
        room = bytes_of(shape, at_once, dtype)
        with Allocations():
            chunked_attention(*drawn(shape, dtype), room)
        scores, weights, *others = sizes
        assert room / 2 <= scores + weights <= room
        assert sum(others) <= 130 * 24 * (4 + dtype.itemsize) + 130 * 4


def weighed(
    scores: torch.Tensor, scale: float, dtype: torch.dtype, triton: bool, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and their sums, on the CPU."""
    scores = scores.to(device if triton else "cpu")
    with poisoned(device):
        weights, sums = torch.empty_like(scores, dtype=dtype), scores.new_empty((len(scores), 1))
    (weigh_triton if triton else weigh)(scores, scale, weights, sums)
    return weights.cpu(), sums.cpu()


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items())
@pytest.mark.parametrize(("rows", "columns"), [(1, 16), (3, 112), (5, 4096), (2, 9232)])
def test_weights_are_powers_relative_to_the_largest_score(
    rows: int, columns: int, dtype: torch.dtype, tolerance: float, triton: bool, device: torch.device
) -> None:
    scores = torch.randn(rows, columns).mul(20)
    scores[:, columns - 5 :] = float("-inf")
    scores[0, 3] = 300.0
    expected = ((scores.double() - scores.double().amax(dim=-1, keepdim=True)) * 0.3).exp()
    weights, sums = weighed(scores, 0.3, dtype, triton, device)
    assert not weights[:, columns - 5 :].any()
    # differences of up to 400 are exact to 1.5e-5, and so are their powers
    torch.testing.assert_close(weights.double(), expected, atol=1e-30, rtol=max(tolerance, 2e-5))
    torch.testing.assert_close(sums.double(), weights.double().sum(dim=-1, keepdim=True), atol=0, rtol=2e-6)


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize("offset", [-1e30, -200.0, 200.0, 1e30])
def test_an_offset_of_all_scores_changes_nothing(offset: float, triton: bool, device: torch.device) -> None:
    scores = torch.randint(-8, 9, (2, 5008)).float()
    expected = scores if abs(offset) < 1e4 else torch.zeros_like(scores)  # what float32 leaves of their differences
    weights, _ = weighed(scores + offset, 1.0, torch.float32, triton, device)
    torch.testing.assert_close(weights, (expected - expected.amax(dim=-1, keepdim=True)).exp(), atol=0, rtol=2e-6)


@pytest.mark.parametrize("triton", [False, True])
def test_a_score_that_is_not_a_number_spoils_its_row_alone(triton: bool, device: torch.device) -> None:
    scores = torch.randn(2, 48)
    scores[1, 7] = float("nan")
    _, sums = weighed(scores, 1.0, torch.float32, triton, device)
    assert sums[1].isnan()
    assert sums[0].isfinite()


@pytest.mark.gpu
@pytest.mark.parametrize("pixels", [(128, 128), (130, 98)])
def test_on_a_gpu_it_is_as_close_to_float64_as_torch(pixels: tuple[int, int]) -> None:
    count = pixels[0] * pixels[1]
    query, key, value = (part.cuda() for part in drawn((1, count, count, 384), torch.bfloat16))
    exact = F.scaled_dot_product_attention(query[:, :500].double(), key.double(), value.double())
    arguments = (query[:, None], key[:, None], value[:, None], None, False)
    theirs = torch.ops.aten._scaled_dot_product_efficient_attention(*arguments)[0][:, 0, :500]
    actual = chunked_attention(query, key, value, 2 * 10**8)[:, :500]
    assert (actual.double() - exact).norm() <= 1.05 * (theirs.double() - exact).norm()
