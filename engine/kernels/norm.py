"""RMSNorm, alone or with its neighbours: the residual before it, the modulation after it, the rounding to fp8.

In a block `x += gate · update` and the norm that follows are one pass over x. Where a row's vectors depend on its
image, the kernel gathers them by the row's segment.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F

from engine.kernels.fp8 import Fp8Rows, empty_rows, quantize_rows, row_pointers, store_row
from engine.kernels.jit import Kernel, Operation, launch_shape, tl
from engine.kernels.packing import Packing


@Operation
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Returns x / sqrt(mean(x²) + eps) · weight over the last dimension, in float32, rounded to x's dtype.

    x: (tokens, width); weight: (width,) float32.
    """
    return F.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)


@rms_norm.on_gpu
def _rms_norm_triton(x, weight, eps) -> torch.Tensor:
    return cast(torch.Tensor, norm_triton(x, weight, eps))


@Operation
def add_rms_norm(
    x: torch.Tensor, update: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns x + update, and its `rms_norm`. All (tokens, width); x stays as it is; weight: (width,) float32."""
    total = x + update
    return total, rms_norm.reference(total, weight, eps)


@add_rms_norm.on_gpu
def _add_rms_norm_triton(x, update, weight, eps) -> tuple[torch.Tensor, torch.Tensor]:
    total = torch.empty_like(x)
    return total, cast(torch.Tensor, norm_triton(x, weight, eps, update=update, total=total))


@Operation
def rms_norm_modulate(
    x: torch.Tensor, factor: torch.Tensor, shift: torch.Tensor, eps: float, packing: Packing, *, fp8: bool = False
) -> torch.Tensor | Fp8Rows:
    """Returns x / sqrt(mean(x²) + eps) · factor + shift, with the vectors of each row's segment, like x or with `fp8`
    as rows for a matrix product.

    x: (tokens, width); factor, shift: (segments, width) float32, the norm's weight being part of factor.
    """
    result = F.rms_norm(x.float(), x.shape[-1:], None, eps)
    for segment, (start, stop) in enumerate(pairwise(packing.bounds)):
        rows = result[start:stop]
        torch.addcmul(shift[segment], rows, factor[segment], out=rows)
    return quantize_rows(result, x.dtype) if fp8 else result.to(x.dtype)


@rms_norm_modulate.on_gpu
def _rms_norm_modulate_triton(x, factor, shift, eps, packing, *, fp8=False) -> torch.Tensor | Fp8Rows:
    return norm_triton(x, factor, eps, shift=shift, packing=packing, fp8=fp8)


@Operation
def add_rms_norm_modulate_(
    x: torch.Tensor,
    update: torch.Tensor,
    gate: torch.Tensor,
    factor: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    packing: Packing,
    *,
    fp8: bool = False,
) -> torch.Tensor | Fp8Rows:
    """Adds gate · update to x in place, and returns `rms_norm_modulate` of it. x, update: (tokens, width); gate:
    (segments, width) float32."""
    for segment, (start, stop) in enumerate(pairwise(packing.bounds)):
        rows = x[start:stop]
        rows.copy_(torch.addcmul(rows.float(), update[start:stop].float(), gate[segment]))
    return rms_norm_modulate.reference(x, factor, shift, eps, packing, fp8=fp8)


@add_rms_norm_modulate_.on_gpu
def _add_rms_norm_modulate_triton(x, update, gate, factor, shift, eps, packing, *, fp8=False) -> torch.Tensor | Fp8Rows:
    return norm_triton(x, factor, eps, update=update, total=x, gate=gate, shift=shift, packing=packing, fp8=fp8)


def norm_triton(
    x, factor, eps, *, update=None, total=None, gate=None, shift=None, packing=None, fp8=False, warps=None
) -> torch.Tensor | Fp8Rows:
    """Launches the one kernel of all operations above, a program a row.

    factor, shift, gate: (segments, width) float32 as above, without `packing` (width,) for every row; factor and shift
    have the same strides. update: makes `total`, which may be x, x + gate · update; all three are (tokens, width) and
    contiguous. warps: of a program, None for `launch_shape`'s; `bench.kernels` tries others.
    """
    tokens, width = x.shape
    assert all(part is None or part.is_contiguous() for part in (x, update, total))
    assert shift is None or shift.stride() == factor.stride()
    output = empty_rows(tokens, width, x, fp8=fp8)
    values, scales = row_pointers(output)
    block, usual_warps = launch_shape(width)
    _norm[(tokens,)](
        x, x if update is None else update, x if total is None else total, values, scales,
        factor if gate is None else gate, factor, factor if shift is None else shift,
        x if packing is None else packing.row_segments,
        0 if gate is None else gate.stride(0), 0 if packing is None else factor.stride(0), width, eps,
        BLOCK=block, HAS_UPDATE=update is not None, HAS_GATE=gate is not None, HAS_SHIFT=shift is not None,
        PER_SEGMENT=packing is not None, FP8=fp8, num_warps=warps or usual_warps,
    )  # fmt: skip
    return output


@Kernel
def _norm(
    x_ptr, update_ptr, total_ptr, y_ptr, scale_ptr, gate_ptr, factor_ptr, shift_ptr, segment_ptr,
    gate_stride, vector_stride, width, eps,
    BLOCK: tl.constexpr, HAS_UPDATE: tl.constexpr, HAS_GATE: tl.constexpr, HAS_SHIFT: tl.constexpr,
    PER_SEGMENT: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """Norms one row, all its columns; `segment_ptr` says which row of the vectors is its. BLOCK: at least width."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    # Rows are streamed past the first-level cache, which is for the vectors that all rows of a segment share.
    x = tl.load(x_ptr + row * width + columns, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
    segment = tl.load(segment_ptr + row).to(tl.int64) if PER_SEGMENT else 0
    if HAS_UPDATE:
        update = tl.load(update_ptr + row * width + columns, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
        if HAS_GATE:
            update *= tl.load(gate_ptr + segment * gate_stride + columns, mask=mask, other=0.0)
        x = (x + update).to(x_ptr.dtype.element_ty)
        tl.store(total_ptr + row * width + columns, x, mask=mask)
        x = x.to(tl.float32)  # the norm sees the residual as it is stored
    y = x * tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
    y *= tl.load(factor_ptr + segment * vector_stride + columns, mask=mask, other=0.0)
    if HAS_SHIFT:
        y += tl.load(shift_ptr + segment * vector_stride + columns, mask=mask, other=0.0)
    store_row(y_ptr, scale_ptr, row, columns, mask, y, width, FP8)
