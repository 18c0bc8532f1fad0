"""A file of tensors that is in memory, counting what is read of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from engine.checkpoint.files import mapped_file
from engine.checkpoint.files.stored import Bounds, Header

DTYPES = {getattr(torch, dtype.torch): name for name, dtype in mapped_file.DTYPES.items()}


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

    def octets(self, name: str, part: slice | None = None) -> np.ndarray:
        return self.tensors[name].contiguous().view(torch.uint8).numpy().reshape(-1)[part or slice(None)]

    def close(self) -> None:
        pass
