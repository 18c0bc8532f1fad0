"""Tensors as quantised files store them."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import torch

from engine.checkpoint.convert.quantize import header_metadata
from engine.checkpoint.files.stored import StoredTensor
from engine.checkpoint.layouts.encodings import stored_tensors
from tests.engine.checkpoint.files.memory_file import MemoryFile


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
