"""Attention inside each segment of a packed batch: grouped key/value heads, no mask, no padding.

The DiT's attention has several implementations, the backends; which of them run here, and which is the fastest, is in
`choice`. The text encoder's is causal and runs once per prompt: `packed_attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F

from engine.kernels.attention.fa3_fp8 import flash_attention_fp8
from engine.kernels.attention.flash_packages import FLASH_PACKAGES, flash_attention
from engine.kernels.attention.plans import PlanSchedule
from engine.kernels.attention.triton_kernel import attention_triton
from engine.kernels.fp8 import Fp8Rows, empty_rows
from engine.kernels.gate import sigmoid_mul
from engine.kernels.packing import LONG_SEGMENT, Packing

QKV = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # (tokens, heads, head_dim), key and value with kv_heads
# (batch, heads, tokens, head_dim) of query, key and value → the same of what attention makes of them
Dense = Callable[..., torch.Tensor]
Attended = tuple[int, int, torch.Tensor]  # first row, last row + 1, (rows, heads, head_dim) laid out in any way
PlanShape = tuple[tuple[int, ...], ...]  # of a segment's query and key, then strides of query, key and value


class GatedAttentionKernel:
    """Attends inside each segment, times sigmoid(gate), by one of `BACKENDS`. A rank makes one for its DiT.

    captured_backend: serves packings whose bounds the host does not know, as in a CUDA graph: a varlen backend, by
    default `backend` if it is one, else none. plans: says which long segments cuDNN serves, where that is the backend;
    flash serves all others. Without it cuDNN serves all, and builds plans at once.
    """

    def __init__(self, backend: str = "torch", captured_backend: str | None = None) -> None:
        if captured_backend is None and backend in VARLEN:
            captured_backend = backend
        assert captured_backend is None or captured_backend in VARLEN
        self.backend = backend
        self.captured_backend = captured_backend
        self.plans: PlanSchedule | None = None

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
        """Returns sigmoid(gate) · softmax(q kᵀ / sqrt(head_dim)) v, each row attending to its own segment: (tokens,
        heads · head_dim), with `fp8` as rows for a matrix product.

        query: (tokens, heads, head_dim); key, value: (tokens, kv_heads, head_dim), kv_heads dividing heads; gate:
        (tokens, heads · head_dim). All may be strided views of a packed matrix.
        """
        backend = self._backend_for(packing)
        if backend == "triton" and not fp8:  # fp8's scale is a row's, over all heads
            return attention_triton(query, key, value, packing, gate)
        attended = self._attend(backend, (query, key, value), packing)
        if isinstance(attended, torch.Tensor):
            return sigmoid_mul(attended, gate, fp8=fp8)
        output = empty_rows(query.shape[0], gate.shape[1], query, fp8=fp8)
        for start, stop, rows in attended:
            sigmoid_mul(rows, gate[start:stop], fp8=fp8, out=output, first=start)
        return output

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Returns the same without a gate."""
        return _packed(self._attend(self._backend_for(packing), (query, key, value), packing), query)

    def _backend_for(self, packing: Packing) -> str:
        backend = self.captured_backend if packing.captured else self.backend
        assert backend is not None, "no varlen backend for a packing without bounds"
        return backend

    def _attend(self, backend: str, qkv: QKV, packing: Packing) -> torch.Tensor | Iterator[Attended]:
        """Makes one call for all segments, → (tokens, heads · head_dim), or one for each as the result is read."""
        if backend in VARLEN:
            return VARLEN[backend](*qkv, packing)
        if backend == "cudnn" and self.plans is not None:
            bounds = pairwise(packing.bounds)
            served = [self._has_plan(*(part[start:stop] for part in qkv)) for start, stop in bounds]
            if any(served):
                return _segments(lambda index: _cudnn if served[index] else _flash, qkv, packing)
            backend = "flash"
        return _by_segment(DENSE[backend], qkv, packing)

    def _has_plan(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
        """Says whether cuDNN serves a segment, and counts it if only a plan is missing."""
        assert self.plans is not None
        tokens = query.shape[0]
        if tokens < LONG_SEGMENT:
            return False
        shape: PlanShape = (query.shape, key.shape, query.stride(), key.stride(), value.stride())
        planned = self.plans.has(shape)
        if not planned:
            self.plans.met(shape, work=tokens**2)
        return planned


def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, *, causal: bool = False
) -> torch.Tensor:
    """Returns softmax(q kᵀ / sqrt(head_dim)) v, each row attending to its own segment: (tokens, heads · head_dim).

    query: (tokens, heads, head_dim); key, value: (tokens, kv_heads, head_dim), kv_heads dividing heads. Rows may be
    strided views of a packed matrix. On a GPU by torch's flash kernel where that runs: what torch would choose, cuDNN,
    first builds a plan for every new length, and prompts come in many.
    """
    capable = query.is_cuda and torch.cuda.get_device_capability(query.device) >= (8, 0)
    dense = _flash if capable and query.dtype != torch.float32 and query.shape[-1] % 8 == 0 else _torch
    return _packed(_by_segment(partial(dense, causal=causal), (query, key, value), packing), query)


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


# torch's two kernels are called by name: `sdpa_kernel` would choose them by flags of the whole process.


def _cudnn(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    if key.shape[2] == 1:  # which cuDNN refuses
        return _flash(query, key, value)
    return torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, None, False)[0]


def _flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool = False) -> torch.Tensor:
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal)[0]


def _by_segment(dense: Dense, qkv: QKV, packing: Packing) -> torch.Tensor | Iterator[Attended]:
    """Makes one call if all segments are equally long, → (tokens, heads · head_dim), else one for each. By cuDNN always
    one for each: every number of equal segments would be one more plan."""
    tokens, heads, head_dim = qkv[0].shape
    if not tokens or len(set(packing.lengths)) > 1 or dense is _cudnn:
        return _segments(lambda _: dense, qkv, packing)
    batches = (tensor.unflatten(0, (packing.segments, packing.longest)).transpose(1, 2) for tensor in qkv)
    return dense(*batches).transpose(1, 2).reshape(tokens, heads * head_dim)


def _segments(dense: Callable[[int], Dense], qkv: QKV, packing: Packing) -> Iterator[Attended]:
    """Makes a call for every segment that has rows, of what `dense` gives for its index."""
    for index, (start, stop) in enumerate(pairwise(packing.bounds)):
        if start < stop:
            # Sliced before it becomes a batch of one, so that strides, for which cuDNN builds a plan each, depend on
            # the segment's length alone.
            segment = (part[start:stop][None].transpose(1, 2) for part in qkv)
            yield start, stop, dense(index)(*segment)[0].transpose(0, 1)


def _packed(attended: torch.Tensor | Iterator[Attended], query: torch.Tensor) -> torch.Tensor:
    """Puts segments together, unless they are already: (tokens, heads · head_dim)."""
    if isinstance(attended, torch.Tensor):
        return attended
    output = query.new_empty(query.shape)
    for start, stop, rows in attended:
        output[start:stop] = rows
    return output.flatten(1)


# ---- cuDNN's plans


def build_plan(shape: PlanShape, device: torch.device, dtype: torch.dtype) -> None:
    """Attends to a segment of this shape by cuDNN, which builds its plan for this thread. Raises what cuDNN raises."""
    query_shape, key_shape, *strides = shape
    sizes = (query_shape, key_shape, key_shape)
    # all three may lie in the same memory: nobody reads what comes out
    span = max(size[0] * stride[0] for size, stride in zip(sizes, strides, strict=True))
    memory = torch.empty(span, device=device, dtype=dtype)
    parts = (memory.as_strided(size, stride) for size, stride in zip(sizes, strides, strict=True))
    _cudnn(*(part[None].transpose(1, 2) for part in parts))


# By backend: what is called once for equally long segments, else once for each.
DENSE: dict[str, Dense] = {"cudnn": _cudnn, "flash": _flash, "torch": _torch}
# By backend: what is called once for all segments, as `packed_attention` without `causal`. It reads only the tables on
# the device, and so can be part of a CUDA graph.
VARLEN: dict[str, Callable[..., torch.Tensor]] = {
    **{name: partial(flash_attention, name) for name in FLASH_PACKAGES},
    "fa3-fp8": flash_attention_fp8,
    "triton": attention_triton,
}
BACKENDS = ("cudnn", "flash", *VARLEN, "torch")
