"""The tensors of quantised layers, and the formats that are seen in them."""

from __future__ import annotations

import json

import pytest
import torch

from engine.checkpoint.layouts.encodings import stored_tensors
from engine.errors import CheckpointError
from tests.engine.checkpoint.files.memory_file import MemoryFile

FP8 = torch.float8_e4m3fn
FORMAT_FP8, FORMAT_INT8 = {"format": "float8_e4m3fn"}, {"format": "int8_tensorwise"}


def zeros(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def layer(name: str, dtype: torch.dtype, **companions: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": zeros(4, 64, dtype=dtype)} | {f"{name}.{kind}": t for kind, t in companions.items()}


def blob(metadata: object, padding: int = 0) -> torch.Tensor:
    text = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
    return torch.tensor(list(text + bytes(padding)), dtype=torch.uint8)


def header(layers: object) -> dict[str, str]:
    return {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}


def formats(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> dict[str, str]:
    return {name: tensor.format for name, tensor in stored_tensors(MemoryFile(tensors, metadata)).items()}


def refusal(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> str:
    with pytest.raises(CheckpointError) as error:
        stored_tensors(MemoryFile(tensors, metadata))
    assert error.value.message.startswith("model.safetensors: ")
    assert len(error.value.message) < 400
    return error.value.message.removeprefix("model.safetensors: ")


INT8_LAYER = layer("blocks.0.a", torch.int8, weight_scale=torch.ones(()))
FP8_LAYER = layer("blocks.0.a", FP8, weight_scale=torch.ones(()))
