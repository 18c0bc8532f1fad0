"""Attention inside each segment of a packed batch: grouped key/value heads, no mask, no padding."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F

from engine.kernels.fp8 import Fp8Rows
from engine.kernels.gate import sigmoid_mul
from engine.kernels.packing import Packing


class GatedAttentionKernel:
    """Attention inside each segment, times sigmoid(gate), by one of the backends. A rank makes one for its DiT."""

    def __init__(self, backend: str = "torch", captured_backend: str | None = None) -> None:
        self.backend, self.captured_backend = backend, captured_backend

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        gate: torch.Tensor,
        packing: Packing,
        *,
        fp8: bool = False,
    ) -> torch.Tensor | Fp8Rows:
        """sigmoid(gate) · softmax(q kᵀ / sqrt(head_dim)) v, each row attending to its own segment.

        query: (tokens, heads, head_dim); key, value: (tokens, kv_heads, head_dim), kv_heads dividing heads; gate:
        (tokens, heads · head_dim). All may be strided views of a packed matrix. Returns (tokens, heads · head_dim),
        with `fp8` as rows for an fp8 matrix product.
        """
        return sigmoid_mul(packed_attention(query, key, value, packing), gate, fp8=fp8)


def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, *, causal: bool = False
) -> torch.Tensor:
    """softmax(q kᵀ / sqrt(head_dim)) v, each row attending to its own segment.

    query: (tokens, heads, head_dim); key, value: (tokens, kv_heads, head_dim), kv_heads dividing heads. Rows may be
    strided views of a packed matrix. Returns (tokens, heads · head_dim).
    """
    tokens, heads, head_dim = query.shape
    if len(set(packing.lengths)) == 1:
        shape = (packing.segments, packing.longest)
        query, key, value = (tensor.unflatten(0, shape) for tensor in (query, key, value))
        return _attend(query, key, value, causal).reshape(tokens, heads * head_dim)
    output = query.new_empty((tokens, heads, head_dim))
    for start, stop in pairwise(packing.bounds):
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
