"""Writes a GGUF file, by llama.cpp's own library and under the rules of the converters that people use."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from engine.checkpoint.convert.safetensors_write import written_whole
from engine.errors import ArgumentError

# What the library can quantise to; it only reads the K-quants.
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1")
_ARCHITECTURE = "krea2"
_SMALL = 1024  # elements up to which a tensor stays float32


def write_gguf(
    path: Path, shapes: Mapping[str, tuple[int, ...]], qtype: str, read: Callable[[str], torch.Tensor]
) -> None:
    """Write the tensors that `read` gives by name, one at a time, with their matrices as `qtype`, one of `TYPES`. The
    file appears under its name when it is whole.

    Vectors, tensors of at most 1,024 elements, and matrices whose columns do not fit the type's blocks become F32.
    Raises `ArgumentError` for a type that cannot be written, `CheckpointError` if the disk does not take the file.
    """
    if qtype not in TYPES:
        raise ArgumentError.of("type", f"one of {', '.join(TYPES)}", qtype)
    types = {name: _type(shape, GGMLQuantizationType[qtype]) for name, shape in shapes.items()}
    with written_whole(path) as temporary, closing(GGUFWriter(temporary, _ARCHITECTURE)) as writer:
        for name, shape in shapes.items():
            block, block_bytes = GGML_QUANT_SIZES[types[name]]
            size = math.prod(shape) // block * block_bytes
            writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=types[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in shapes:
            writer.write_tensor_data(quantize(read(name).float().contiguous().numpy(), types[name]))


def _type(shape: tuple[int, ...], wanted: GGMLQuantizationType) -> GGMLQuantizationType:
    block, _ = GGML_QUANT_SIZES[wanted]
    if len(shape) < 2 or math.prod(shape) <= _SMALL or shape[-1] % block:
        return GGMLQuantizationType.F32
    return wanted
