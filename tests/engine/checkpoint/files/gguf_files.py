"""GGUF files written by the library, and what is read from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import HealthCheck, settings

from engine.checkpoint.files.open import open_tensor_file
from engine.checkpoint.files.stored import Bounds
from engine.errors import CheckpointError
from tests.damage import bounded_memory

FUZZ = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)


def whole(shape: tuple[int, ...]) -> Bounds:
    return tuple(slice(0, length) for length in shape)


def write(path: Path, tensors: dict[str, tuple[np.ndarray, Type]], **shapes: list[int]) -> Path:
    """A file by the library's writer. tensors: the bytes of rows of quantised ones; shapes: `orig_shape`s."""
    writer = GGUFWriter(path, "krea2")
    for name, shape in shapes.items():
        writer.add_array(f"comfy.gguf.orig_shape.{name}", shape)
    for name, (values, dtype) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_blocks(dtype: Type, rows: int, blocks: int) -> np.ndarray:
    octets = np.random.default_rng(0).integers(0, 256, (rows, blocks * GGML_QUANT_SIZES[dtype][1]), dtype=np.uint8)
    return octets


def same_bits(one: torch.Tensor, two: torch.Tensor) -> bool:
    octets = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, two)]
    return one.dtype == two.dtype and one.shape == two.shape and bool(octets[0].equal(octets[1]))


def refusal(path: Path) -> str:
    """The one line that opening the file gives, after the file's name, in bounded memory."""
    with pytest.raises(CheckpointError) as error, bounded_memory():
        open_tensor_file(path)
    assert error.value.message.isprintable()
    message = error.value.message.removeprefix(f"{path}: ")
    assert len(message) < 600
    return message
