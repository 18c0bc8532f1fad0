"""Attention inside each segment of a packed batch: grouped key/value heads, no mask, no padding.

The DiT's attention has several implementations, the backends; which of them run here, and which is the fastest, is in
`attention_choice`. The text encoder's is causal and runs once per prompt: `packed_attention`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F

from engine.kernels.attention_triton import attention_triton
from engine.kernels.flash_attention import FLASH_PACKAGES, flash_attention
from engine.kernels.fp8 import Fp8Rows
from engine.kernels.gate import sigmoid_mul
from engine.kernels.packing import Packing


class GatedAttentionKernel:
    """Attention inside each segment, times sigmoid(gate), by one of `BACKENDS`. A rank makes one for its DiT.

    `captured_backend` serves packings whose bounds the host does not know, as in a CUDA graph: one of the varlen
    backends, by default `backend` if it is one, else none.
    """

    def __init__(self, backend: str = "torch", captured_backend: str | None = None) -> None:
        if captured_backend is None and BACKENDS[backend].varlen:
            captured_backend = backend
        assert captured_backend is None or BACKENDS[captured_backend].varlen
        self.backend = backend
        self.captured_backend = captured_backend

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
        if self._backend_for(packing) == "triton" and not fp8:  # fp8's scale is a row's, over all heads
            return attention_triton(query, key, value, packing, gate)
        return sigmoid_mul(self.attend(query, key, value, packing), gate, fp8=fp8)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing) -> torch.Tensor:
        """The same without a gate."""
        return BACKENDS[self._backend_for(packing)].attend(query, key, value, packing)

    def _backend_for(self, packing: Packing) -> str:
        backend = self.captured_backend if packing.captured else self.backend
        assert backend is not None, "no varlen backend for a packing without bounds"
        return backend


def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, *, causal: bool = False
) -> torch.Tensor:
    """softmax(q kᵀ / sqrt(head_dim)) v, each row attending to its own segment.

    query: (tokens, heads, head_dim); key, value: (tokens, kv_heads, head_dim), kv_heads dividing heads. Rows may be
    strided views of a packed matrix. Returns (tokens, heads · head_dim). On a GPU by torch's flash kernel where that
    runs: what torch would choose itself, cuDNN, first builds a plan for every new length, and prompts come in many.
    """
    capable = query.is_cuda and torch.cuda.get_device_capability(query.device) >= (8, 0)
    dense = _flash if capable and query.dtype != torch.float32 and query.shape[-1] % 8 == 0 else _torch
    return _by_segment(lambda *qkv: dense(*qkv, causal=causal), query, key, value, packing)


def _torch(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool = False) -> torch.Tensor:
    if query.is_cuda and query.dtype != torch.float32:
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=True)
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
    attended = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    return attended.reshape(batch, heads, tokens, head_dim)  # copied on a GPU, which lays heads out inside of tokens


# torch's two kernels are called by name: `sdpa_kernel` would choose them by flags of the whole process, and the VAE,
# whose attention neither takes, decodes in a thread of its own.


def _cudnn(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    if key.shape[2] == 1:  # which cuDNN refuses
        return _flash(query, key, value)
    return torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, None, False)[0]


def _flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool = False) -> torch.Tensor:
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal)[0]


def _by_segment(
    dense: Callable[..., torch.Tensor], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing
) -> torch.Tensor:
    """One call of `dense`, (batch, heads, tokens, head_dim), if all segments are equally long, else one for each."""
    tokens, heads, head_dim = query.shape
    if tokens and len(set(packing.lengths)) == 1:
        shape = (packing.segments, packing.longest)
        batches = (tensor.unflatten(0, shape).transpose(1, 2) for tensor in (query, key, value))
        return dense(*batches).transpose(1, 2).reshape(tokens, heads * head_dim)
    output = query.new_empty((tokens, heads, head_dim))
    for start, stop in pairwise(packing.bounds):
        if start < stop:
            # Sliced before it becomes a batch of one, so that strides, for which cuDNN builds a plan each, depend on
            # the segment's length alone.
            segment = (tensor[start:stop][None].transpose(1, 2) for tensor in (query, key, value))
            output[start:stop] = dense(*segment)[0].transpose(0, 1)
    return output.flatten(1)


@dataclass(frozen=True)
class Backend:
    """attend: (query, key, value, packing) → (tokens, heads · head_dim), as `packed_attention`. varlen: one launch for
    all segments that reads nothing of the packing but its tables on the device, and so can be part of a CUDA graph."""

    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Packing], torch.Tensor]
    varlen: bool


BACKENDS = {
    "cudnn": Backend(lambda *call: _by_segment(_cudnn, *call), varlen=False),
    "flash": Backend(lambda *call: _by_segment(_flash, *call), varlen=False),
    **{name: Backend(partial(flash_attention, name), varlen=True) for name in FLASH_PACKAGES},
    "triton": Backend(attention_triton, varlen=True),
    "torch": Backend(lambda *call: _by_segment(_torch, *call), varlen=False),
}
