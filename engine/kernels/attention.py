"""Attention inside each segment of a packed batch: grouped key/value heads, no mask, no padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F


def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: Sequence[int], *, causal: bool = False
) -> torch.Tensor:
    """softmax(q kᵀ / sqrt(head_dim)) v, each row attending to its own segment.

    query: (tokens, heads, head_dim); key, value: (tokens, kv_heads, head_dim), kv_heads dividing heads. Rows may be
    strided views of a packed matrix. Returns (tokens, heads · head_dim).
    """
    tokens, heads, head_dim = query.shape
    lengths = {stop - start for start, stop in pairwise(bounds)}
    if len(lengths) == 1:
        shape = (len(bounds) - 1, lengths.pop())
        query, key, value = (tensor.unflatten(0, shape) for tensor in (query, key, value))
        return _attend(query, key, value, causal).reshape(tokens, heads * head_dim)
    output = query.new_empty((tokens, heads, head_dim))
    for start, stop in pairwise(bounds):
        rows = slice(start, stop)
        output[rows] = _attend(query[None, rows], key[None, rows], value[None, rows], causal)[0]
    return output.flatten(1)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool) -> torch.Tensor:
    """(batch, tokens, heads, head_dim), key and value with fewer heads; returns the shape of query."""
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    if query.device.type == "cuda" and query.dtype != torch.float32:
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=True).transpose(1, 2)
    # On the CPU enable_gqa is up to 1.6 times slower, and no fused CUDA kernel for float32 takes it. Instead each
    # key/value head becomes a batch entry whose queries see it through an expanded view, so one image's keys and
    # values are never repeated in memory.
    batch, heads, tokens, head_dim = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    query = query.reshape(batch * kv_heads, group, tokens, head_dim)
    key, value = (
        tensor.reshape(batch * kv_heads, 1, tokens, head_dim).expand(-1, group, -1, -1) for tensor in (key, value)
    )
    output = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    return output.view(batch, heads, tokens, head_dim).transpose(1, 2)
