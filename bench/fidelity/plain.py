"""The engine with some of its kernels replaced by plain PyTorch, on whatever device."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from engine.kernels import gate, image_norm, int8, norm, rope, upsample
from engine.kernels.attention import chunked as chunked_attention
from engine.kernels.jit import Operation


@contextmanager
def plain_kernels(names: Collection[str]) -> Iterator[None]:
    """While this is open, a GPU computes these of `PLAIN` by their torch references. One engine computes at a time."""
    with ExitStack() as stack:
        for name in names:
            for own in PLAIN[name]:
                stack.enter_context(patch.object(own, "_launch", own.reference))
        yield


# the engine's operations, of which each has a torch reference
PLAIN: dict[str, tuple[Operation[Any, Any], ...]] = {
    "norms": (norm.rms_norm, norm.add_rms_norm, norm.rms_norm_modulate, norm.add_rms_norm_modulate_),
    "gates": (gate.silu_mul, gate.sigmoid_mul),
    "rotation": (rope.norm_rotate_, rope.norm_rotate_to_ranks),
    "int8 weights": (int8.dequantize_groups,),
    "VAE": (
        image_norm.image_norm,
        image_norm.add_image_norm_,
        image_norm.add_residual_,
        upsample.upsample,
        chunked_attention.weigh,
    ),
}
