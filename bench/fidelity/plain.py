"""The engine with some of its kernels replaced by plain PyTorch, on whatever device."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from engine.kernels import gate, image_norm, int8, norm, rope, upsample
from engine.kernels.attention import chunked as chunked_attention


@contextmanager
def plain_kernels(names: Collection[str]) -> Iterator[None]:
    """While this is open, everything in the engine calls these of `PLAIN` in place of its own functions. One engine
    computes at a time."""
    with ExitStack() as stack:
        for name in names:
            for own, plain in PLAIN[name].items():
                for module_name, module in list(sys.modules.items()):
                    if module_name.startswith("engine.") and getattr(module, own.__name__, None) is own:
                        stack.enter_context(patch.object(module, own.__name__, plain))
        yield


# each function of the engine that chooses, and its torch reference
PLAIN: dict[str, dict[Callable[..., Any], Callable[..., Any]]] = {
    "norms": {
        norm.rms_norm: norm.rms_norm_torch,
        norm.add_rms_norm: norm.add_rms_norm_torch,
        norm.rms_norm_modulate: norm.rms_norm_modulate_torch,
        norm.add_rms_norm_modulate_: norm.add_rms_norm_modulate_torch_,
    },
    "gates": {gate.silu_mul: gate.silu_mul_torch, gate.sigmoid_mul: gate.sigmoid_mul_torch},
    "rotation": {
        rope.norm_rotate_: rope.norm_rotate_torch_,
        rope.norm_rotate_to_ranks: rope.norm_rotate_to_ranks_torch,
    },
    "int8 weights": {int8.dequantize_groups: int8.dequantize_groups_torch},
    "VAE": {
        image_norm.image_norm: image_norm.image_norm_torch,
        image_norm.add_image_norm_: image_norm.add_image_norm_torch_,
        image_norm.add_residual_: image_norm.add_residual_torch_,
        upsample.upsample: upsample.upsample_torch,
        chunked_attention.weigh: chunked_attention.weigh_torch,
    },
}
