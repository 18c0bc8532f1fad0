"""Safetensors files made by hand, and what is read from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from engine.checkpoint.files.mapped_file import DTYPES
from engine.checkpoint.files.open import open_tensor_file
from engine.checkpoint.files.stored import Bounds
from engine.errors import CheckpointError
from tests.damage import bounded_memory

FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)


def whole(shape: tuple[int, ...]) -> Bounds:
    return tuple(slice(0, length) for length in shape)


def random_tensor(dtype: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    name, size = DTYPES[dtype]
    if name == "bool":
        return torch.rand(shape, generator=generator) < 0.5
    octets = torch.randint(0, 256, (*shape, size), dtype=torch.uint8, generator=generator)
    return octets.view(getattr(torch, name)).reshape(shape)


def same_bits(one: torch.Tensor, two: torch.Tensor) -> bool:
    octets = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, two)]
    return one.dtype == two.dtype and one.shape == two.shape and bool(octets[0].equal(octets[1]))


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A file with this header: an object, or the JSON text itself."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(shape: Any = (2, 3), begin: Any = 0, end: Any = 24, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refusal(path: Path) -> str:
    """The one line that opening the file gives, after the file's name, in bounded memory."""
    with pytest.raises(CheckpointError) as error, bounded_memory():
        open_tensor_file(path)
    assert error.value.message.isprintable()
    assert error.value.message.startswith(f"{path.parent}")
    message = error.value.message.removeprefix(f"{path.parent}/")
    assert len(message) < 600
    return message
