"""A GGUF file, whose tensors are plain numbers or blocks of quantised ones. Its header: see `gguf_header`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from engine.checkpoint.files.gguf_header import TensorInfo, read_gguf_header
from engine.checkpoint.files.mapped_file import DTYPES, MappedFile
from engine.checkpoint.files.stored import INT8_GROUP, Bounds, Header, TensorFile, count, covering

if TYPE_CHECKING:
    import numpy as np
    import torch

_Q8_0_SCALE_BYTES = 2  # of a block, before its values
# Elements that are dequantised at once: it makes many temporary arrays, which stay in a core's cache.
_PIECE = 1 << 18


class GgufFile(MappedFile, TensorFile):
    """An open GGUF file. Shapes are in torch's order, rows before columns."""

    def __init__(self, path: Path) -> None:
        """Read and check the header. Raises `CheckpointError`."""
        super().__init__(path)
        self.metadata, self._infos = read_gguf_header(self)
        self.headers = {name: Header(info.shape, info.dtype) for name, info in self._infos.items()}

    def read(self, name: str, bounds: Bounds) -> torch.Tensor:
        """Read a slice: of plain numbers in their own dtype, of quantised ones dequantised to float32.

        Raises `CheckpointError` for a type that cannot be dequantised. Any thread may call it.
        """
        import torch

        info = self._infos[name]
        if info.dtype in DTYPES:
            return self.tensor(info.start, info.shape, info.dtype, bounds)
        values = self._dequantize(name, self._blocks(info, bounds))
        _, (_, kept) = _as_matrix(info, bounds)
        before = kept.start % info.block[0]
        matrix = torch.from_numpy(values)[:, before : before + kept.stop - kept.start]
        if _is_matrix_of_blocks(info):
            return matrix
        if not info.shape:
            return matrix.reshape(())
        return matrix.reshape(bounds[0].stop - bounds[0].start, *info.shape[1:])[(slice(None), *bounds[1:])]

    def read_q8_0(self, name: str, bounds: Bounds) -> tuple[torch.Tensor, torch.Tensor]:
        """Read values (rows, columns) in int8 and scales (rows, columns / 32) in float16 of a slice of a Q8_0 matrix
        whose columns begin and end at multiples of 32. Any thread may call it."""
        import torch

        info = self._infos[name]
        assert (info.dtype, _is_matrix_of_blocks(info)) == ("Q8_0", True), info
        assert covering(bounds[1], INT8_GROUP) == bounds[1], f"columns {bounds[1]} cut a block"
        blocks = self._blocks(info, bounds)
        height, groups, _ = blocks.shape
        scales: np.ndarray = blocks[..., :_Q8_0_SCALE_BYTES].copy().view("<f2").reshape(height, groups)
        values: np.ndarray = blocks[..., _Q8_0_SCALE_BYTES:].copy().view("i1").reshape(height, groups * INT8_GROUP)
        return torch.from_numpy(values), torch.from_numpy(scales)

    def bytes_of(self, name: str, bounds: Bounds) -> int:
        """Return the bytes of the file that a slice takes, whole blocks counted."""
        info = self._infos[name]
        _, (rows, columns) = _as_matrix(info, bounds)
        return count((rows, covering(columns, info.block[0]))) // info.block[0] * info.block[1]

    def octets(self, name: str, part: slice | None = None) -> np.ndarray:
        return self.copy(self._infos[name].start, self._infos[name].bytes, part)

    def _blocks(self, info: TensorInfo, bounds: Bounds) -> np.ndarray:
        """(rows, blocks, bytes of a block) uint8: the blocks that cover a slice."""
        elements, size = info.block
        width, (rows, columns) = _as_matrix(info, bounds)
        first, last = columns.start // elements, -(-columns.stop // elements)
        bytes_of_rows = (rows, slice(first * size, last * size))
        octets = self.tensor(info.start, (rows.stop, width // elements * size), "U8", bytes_of_rows)
        return octets.unflatten(1, (-1, size)).numpy()

    def _dequantize(self, name: str, blocks: np.ndarray) -> np.ndarray:
        """(rows, blocks, bytes of a block) uint8 → (rows, columns) float32."""
        import numpy as np
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        info = self._infos[name]
        dtype, (elements, size) = GGMLQuantizationType[info.dtype], info.block
        height, in_row = blocks.shape[:2]
        packed = blocks.reshape(height * in_row, size)
        values = np.empty((height * in_row, elements), np.float32)
        step = max(1, _PIECE // elements)
        try:
            with np.errstate(all="ignore"):  # scales may be no numbers, which whoever loads them looks for
                for start in range(0, len(packed), step):
                    piece = packed[start : start + step].reshape(1, -1)
                    values[start : start + step] = dequantize(piece, dtype).reshape(-1, elements)
        except NotImplementedError:
            raise self.error(f"{info.dtype} cannot be dequantised", name=name) from None
        return values.reshape(height, in_row * elements)


def _is_matrix_of_blocks(info: TensorInfo) -> bool:
    return len(info.shape) == 2 and info.shape[1] % info.block[0] == 0


def _as_matrix(info: TensorInfo, bounds: Bounds) -> tuple[int, Bounds]:
    """The matrix's columns, and the rows and columns of a slice, in a matrix whose rows are whole blocks.

    A tensor of another shape counts as a matrix of one row, of which everything between the first and the last row
    (of the tensor's first dimension) is read.
    """
    if _is_matrix_of_blocks(info):
        return info.shape[1], bounds
    width = math.prod(info.shape[1:])
    first = bounds[0] if bounds else slice(0, 1)
    return math.prod(info.shape), (slice(0, 1), slice(first.start * width, first.stop * width))
