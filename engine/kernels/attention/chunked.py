"""Attention of one head that is too wide for the kernels that keep scores in registers, over very many keys.

Scores of some queries at a time lie in memory: a matrix product makes them, a kernel makes weights of them, another
product mixes the values. Both products run at the rate of large ones, which costs less than a kernel that has to keep
its results for 384 columns somewhere while it goes through the keys.
"""

from __future__ import annotations

import torch

from engine.kernels.jit import Kernel, Operation, tl

# Queries at once, if memory allows: fewer leave the second product, of 384 columns, too few tiles for a large GPU.
_MOST_QUERIES = 4096
_FLOAT32 = 4
_ALIGNED = 16  # what a row of scores is a multiple of: rows begin where wide loads may, whatever the number of keys
_LOWEST = -3.0e38  # below every score
BLOCK, WARPS = 4096, 16  # columns that a program holds: two loads of 16 bytes a thread
_LOG2_E = 1.4426950408889634


def chunked_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, room: int) -> torch.Tensor:
    """softmax(q kᵀ / sqrt(width)) v: (images, queries, width) and twice (images, keys, width) → (images, queries,
    width).

    Products are summed up and handed on in float32; weights are rounded to the inputs' dtype. room: bytes of scores and
    weights that there may be at one time, if that is enough for one query's.
    """
    (images, queries, width), keys = query.shape, key.shape[1]
    columns = -(-keys // _ALIGNED) * _ALIGNED
    each = columns * (_FLOAT32 + query.element_size())
    parts = -(-queries // min(_MOST_QUERIES, max(1, room // each)))
    rows = -(-queries // parts)
    scores = query.new_empty((rows, columns), dtype=torch.float32)
    scores[:, keys:] = float("-inf")
    weights = query.new_empty((rows, columns))
    sums = query.new_empty((rows, 1), dtype=torch.float32)
    mixed = query.new_empty((rows, width), dtype=torch.float32)
    result = query.new_empty((images, queries, width))
    for image in range(images):
        for some, target in zip(query[image].split(rows), result[image].split(rows), strict=True):
            count = len(some)
            _multiply(some, key[image].t(), out=scores[:count, :keys])
            weigh(scores[:count], width**-0.5, weights[:count], sums[:count])
            _multiply(weights[:count, :keys], value[image], out=mixed[:count])
            torch.div(mixed[:count], sums[:count], out=target)
    return result


def _multiply(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> None:
    """a b into float32 `out`, without rounding to the dtype of a and b on the way."""
    if a.is_cuda:
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    else:
        torch.mm(a.float(), b.float(), out=out)


@Operation
def weigh(scores: torch.Tensor, scale: float, weights: torch.Tensor, sums: torch.Tensor) -> None:
    """A softmax but for its division: exp(scale · (score − the row's largest)) and, of these as they are rounded, each
    row's sum.

    scores: (rows, columns) float32, of which -inf weighs nothing; weights: as they are, of any dtype; sums: (rows, 1)
    float32. All contiguous. The largest weight is 1, which is exact, and rounding changes nothing of what a row adds up
    to: the error is less than that of a softmax that is rounded.
    """
    weights.copy_(((scores - scores.amax(dim=-1, keepdim=True)) * scale).exp())
    torch.sum(weights, dim=-1, keepdim=True, dtype=torch.float32, out=sums)


@weigh.on_gpu
def weigh_triton(scores: torch.Tensor, scale: float, weights: torch.Tensor, sums: torch.Tensor) -> None:
    """The same by the kernel, a program a row."""
    rows, columns = scores.shape
    assert scores.is_contiguous()
    assert weights.is_contiguous()
    _weigh[(rows,)](scores, weights, sums, columns, scale * _LOG2_E, _LOWEST, BLOCK=BLOCK, num_warps=WARPS)


@Kernel
def _weigh(scores_ptr, weights_ptr, sums_ptr, columns, scale, lowest, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    scores_ptr += row * columns
    weights_ptr += row * columns
    lanes = tl.arange(0, BLOCK)
    largest = tl.zeros((BLOCK,), tl.float32) + lowest
    for start in range(0, columns, BLOCK):
        mask = start + lanes < columns
        x = tl.load(scores_ptr + start + lanes, mask=mask, other=float("-inf"), cache_modifier=".cg")
        largest = tl.maximum(largest, x)
    top = tl.max(largest, axis=0)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):  # of which the second-level cache holds most
        mask = start + lanes < columns
        x = tl.load(scores_ptr + start + lanes, mask=mask, other=float("-inf"), cache_modifier=".cg")
        weight = tl.exp2((x - top) * scale).to(weights_ptr.dtype.element_ty)
        tl.store(weights_ptr + start + lanes, weight, mask=mask)
        total += weight.to(tl.float32)
    tl.store(sums_ptr + row, tl.sum(total, axis=0))
