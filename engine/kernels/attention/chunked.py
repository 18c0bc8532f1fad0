"""Attention of one head that is too wide for kernels which keep scores in registers, over very many keys.

Scores of some queries at a time lie in memory: a matrix product makes them, a kernel makes weights of them, another
product mixes the values. Two large products cost less than a kernel that must keep results of 384 columns somewhere.
"""

from __future__ import annotations

import torch

from engine.kernels.jit import Kernel, Operation, tl

# Queries at once, if memory allows: fewer leave the second product, of 384 columns, too few tiles for a large GPU.
_MOST_QUERIES = 4096
_FLOAT32 = 4  # bytes
_ALIGNED = 16  # columns of scores are a multiple of it, so that each row begins where wide loads may
_LOWEST = -3.0e38  # below every score
BLOCK, WARPS = 4096, 16  # columns of a program at a time: two loads of 16 bytes a thread
_LOG2_E = 1.4426950408889634


def chunked_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, room: int) -> torch.Tensor:
    """Returns softmax(q kᵀ / sqrt(width)) v, (images, queries, width). key, value: (images, keys, width).

    Products are summed up and handed on in float32; weights are rounded to the inputs' dtype. room: bytes that scores
    and weights may take at one time, where that is enough for one query's.
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
    """Writes a b to float32 `out` without rounding it to the dtype of a and b. (m, k) and (k, n) → (m, n)."""
    if a.is_cuda:
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    else:
        torch.mm(a.float(), b.float(), out=out)


@Operation
def weigh(scores: torch.Tensor, scale: float, weights: torch.Tensor, sums: torch.Tensor) -> None:
    """Writes a softmax without its division: exp(scale · (score − the row's largest)) to weights, and to sums what each
    row of these, as they are rounded, adds up to.

    scores: (rows, columns) float32, of which -inf weighs nothing; weights: like these in any dtype; sums: (rows, 1)
    float32. All contiguous. The largest weight is 1, which is exact, and the sums are of what is multiplied: the error
    is less than that of a softmax that is rounded.
    """
    weights.copy_(((scores - scores.amax(dim=-1, keepdim=True)) * scale).exp())
    torch.sum(weights, dim=-1, keepdim=True, dtype=torch.float32, out=sums)


@weigh.on_gpu
def weigh_triton(scores, scale, weights, sums) -> None:
    """Launches a program a row."""
    rows, columns = scores.shape
    assert scores.is_contiguous()
    assert weights.is_contiguous()
    _weigh[(rows,)](scores, weights, sums, columns, scale * _LOG2_E, _LOWEST, BLOCK=BLOCK, num_warps=WARPS)


@Kernel
def _weigh(scores_ptr, weights_ptr, sums_ptr, columns, scale, lowest, BLOCK: tl.constexpr):
    """Weighs one row, BLOCK columns at a time, twice: for its largest score, then for weights. scale: with log2(e)."""
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
