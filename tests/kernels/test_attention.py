"""Packed attention against the formula in float64, segment by segment."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from engine.kernels.attention import packed_attention
from engine.kernels.packing import Packing

LENGTHS = [(1,), (17,), (5, 5, 5), (1, 3, 36), (33, 1, 32)]
HEADS = [(1, 1), (4, 4), (8, 4), (6, 2), (12, 3)]  # 48/12 at TP 1 and 4 have the ratio of the last


def _expected(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: tuple[int, ...], causal: bool
) -> torch.Tensor:
    query, key, value = query.double(), key.double(), value.double()
    group = query.shape[1] // key.shape[1]
    output = torch.empty_like(query)
    for start, stop in pairwise(bounds):
        for head in range(query.shape[1]):
            q, k, v = query[start:stop, head], key[start:stop, head // group], value[start:stop, head // group]
            scores = q @ k.T / q.shape[-1] ** 0.5
            if causal:
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
            output[start:stop, head] = scores.softmax(-1) @ v
    return output.flatten(1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_every_row_attends_to_its_own_segment(
    lengths: tuple[int, ...], heads: int, kv_heads: int, causal: bool
) -> None:
    head_dim, packing = 24, Packing(lengths, torch.device("cpu"))
    packed = torch.randn(packing.tokens, (heads + 2 * kv_heads + 1) * head_dim)  # strided views, as in the qkvg matrix
    query, key, value = (
        part.unflatten(-1, (-1, head_dim))
        for part in packed[:, head_dim:].split([n * head_dim for n in (heads, kv_heads, kv_heads)], dim=-1)
    )
    actual = packed_attention(query, key, value, packing, causal=causal)
    torch.testing.assert_close(
        actual.double(), _expected(query, key, value, packing.bounds, causal), atol=2e-6, rtol=2e-6
    )


def test_bfloat16_is_near_float64() -> None:
    query, key, value = torch.randn(3, 40, 4, 32).bfloat16()
    actual = packed_attention(query, key, value, Packing((15, 25), torch.device("cpu")))
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(
        actual.double(), _expected(query, key, value, (0, 15, 40), False), atol=2**-6, rtol=2**-6
    )
