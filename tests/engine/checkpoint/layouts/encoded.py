"""Tensors as quantised files store them."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import torch

from engine.checkpoint.convert.quantize import Encoded, header_metadata
from engine.checkpoint.convert.quantize import encode as encode_as_written
from engine.checkpoint.files.stored import StoredTensor
from engine.checkpoint.layouts.encodings import stored_tensors
from engine.checkpoint.quantized.number_formats import rotate_groups
from tests.engine.checkpoint.files.memory_file import MemoryFile

FORMATS = ("float8_e4m3fn", "int8_tensorwise", "mxfp8", "nvfp4", "convrot_w4a4")


def encode(format: str, layer: str, weight: torch.Tensor, *, group: int = 256, full_precision: bool = False) -> Encoded:
    """As `quantize.encode`, and to convrot_w4a4, which is read and not written."""
    if format != "convrot_w4a4":
        return encode_as_written(format, layer, weight, group=group, full_precision=full_precision)
    rotated = rotate_groups(weight.float(), group)
    scales = rotated.abs().amax(dim=1, keepdim=True).div_(7).clamp_(min=1e-12)
    low, high = ((rotated / scales).round_().to(torch.int8) & 15).view(torch.uint8).unflatten(1, (-1, 2)).unbind(2)
    metadata = {"format": format, "convrot": True, "convrot_groupsize": group}
    if full_precision:
        metadata["full_precision_matrix_mult"] = True
    tensors = {f"{layer}.weight": (high * 16 + low).view(torch.int8), f"{layer}.weight_scale": scales[:, 0]}
    return Encoded(tensors, metadata)


def stored(tensors: dict[str, torch.Tensor], metadata: dict[str, Any] | None) -> StoredTensor:
    """The only tensor that is meant, `a.weight`."""
    found = stored_tensors(MemoryFile(tensors, header_metadata({"a": metadata}) if metadata else None))
    assert list(found) == ["a.weight"]
    return found["a.weight"]


def whole(tensor: StoredTensor) -> torch.Tensor:
    return tensor.read(tuple(slice(0, length) for length in tensor.shape))


def random_bytes(*shape: int, seed: int = 0, avoid: tuple[int, ...] = ()) -> torch.Tensor:
    rng = random.Random(seed)
    allowed = [byte for byte in range(256) if byte not in avoid]
    return torch.tensor(rng.choices(allowed, k=math.prod(shape)), dtype=torch.uint8).reshape(shape)


def metadata_tensor(layer: str, metadata: object) -> dict[str, torch.Tensor]:
    """The tensor beside a layer's weight that says how it is quantised."""
    return {f"{layer}.comfy_quant": torch.tensor(list(json.dumps(metadata).encode()), dtype=torch.uint8)}
