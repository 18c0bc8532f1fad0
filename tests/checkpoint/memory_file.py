"""A file of tensors that is in memory, counting what is read of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from engine.checkpoint.stored import Bounds, Header

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}


class MemoryFile:
    """See `TensorFile`. Tensors may be on the meta device, if nobody reads them."""

    path = Path("model.safetensors")

    def __init__(self, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
        self.tensors = dict(tensors)
        self.headers = {name: Header(tuple(t.shape), DTYPES[t.dtype]) for name, t in tensors.items()}
        self.metadata = metadata or {}
        self.bytes_read = 0

    def read(self, name: str, bounds: Bounds) -> torch.Tensor:
        tensor = self.tensors[name]
        assert len(bounds) == tensor.ndim
        for bound, length in zip(bounds, tensor.shape, strict=True):
            assert 0 <= bound.start <= bound.stop <= length
            assert bound.step is None
        part = tensor[bounds] if bounds else tensor
        self.bytes_read += part.nbytes
        return part

    def octets(self, name: str) -> np.ndarray:
        return self.tensors[name].contiguous().view(torch.uint8).numpy().reshape(-1)

    def close(self) -> None:
        pass
