"""References of the kernels that a CUDA graph holds: they find the segments in the packing's tables, as kernels do.

The engine's own go by the bounds that the host knows, which there are none of in a graph.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from engine.kernels import norm
from engine.kernels.attention import backends as attention
from engine.kernels.fp8 import Fp8Rows, quantize_rows
from engine.kernels.gate import sigmoid_mul
from engine.kernels.packing import Packing

Rows = torch.Tensor | Fp8Rows


def rms_norm_modulate(
    x: torch.Tensor, factor: torch.Tensor, shift: torch.Tensor, eps: float, packing: Packing, *, fp8: bool = False
) -> Rows:
    segments = packing.row_segments
    normed = F.rms_norm(x.float(), x.shape[-1:], None, eps)
    result = torch.addcmul(shift[segments], normed, factor[segments])
    return quantize_rows(result, x.dtype) if fp8 else result.to(x.dtype)


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
) -> Rows:
    x.copy_(torch.addcmul(x.float(), update.float(), gate[packing.row_segments]))
    return rms_norm_modulate(x, factor, shift, eps, packing, fp8=fp8)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: Packing,
    gate: torch.Tensor | None = None,
    **_: Any,
) -> Any:
    segments = packing.row_segments
    heads_first = (part.transpose(0, 1) for part in (query, key, value))
    mask = (segments[:, None] == segments)[None]
    attended = F.scaled_dot_product_attention(*heads_first, attn_mask=mask, enable_gqa=True)
    rows = attended.transpose(0, 1).flatten(1)
    return rows if gate is None else sigmoid_mul(rows, gate)


# owner, name, and what stands there on the fake device
REPLACED: list[tuple[Any, str, Any]] = [
    (norm.rms_norm_modulate, "reference", rms_norm_modulate),
    (norm.add_rms_norm_modulate_, "reference", add_rms_norm_modulate_),
    (attention, "attention_triton", attend),
    (torch.backends.cuda, "is_flash_attention_available", lambda: False),  # as torch's CPU build says
]
