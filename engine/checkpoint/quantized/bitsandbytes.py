"""Matrices as bitsandbytes stores them in 4 and 8 bits, in folders of diffusers and transformers.

Computed as it dequantises them (https://github.com/bitsandbytes-foundation/bitsandbytes, `backends/default/ops.py`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from engine.checkpoint.files.stored import count
from engine.checkpoint.quantized import number_formats as numbers
from engine.checkpoint.quantized.metadata import read_blob
from engine.checkpoint.quantized.scaled import Layer, QuantizedMatrix, RowScaledMatrix
from engine.config.json_fields import JsonFields
from engine.errors import CheckpointError

if TYPE_CHECKING:
    import torch

BNB_4BIT, BNB_8BIT = "bitsandbytes 4bit", "bitsandbytes int8"
_CODES = {"nf4": numbers.NF4, "fp4": numbers.BNB_FP4}
_LARGEST_BLOCK = 1 << 16  # numbers
_NESTED_CODES = 256
_CLOSE = 1e-3  # the file's code book to the one of the format, with which bitsandbytes computes


class FourBitMatrix(QuantizedMatrix):
    """nf4 and fp4: codes of all rows one after the other, two in a byte with the first in the high nibble, and a scale
    for each block of so many numbers, whichever rows they are in; the scales perhaps in 8 bits themselves.

    A number is code book[code] · scale. A scale in 8 bits is nested code book[code] · nested scale + offset, with a
    nested scale for each block of scales.
    """

    packed = 2
    kinds = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", "quant_state")

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        rows, columns = self.shape
        sizes: dict[str, int] = {}
        self._scale_count = -(-rows * columns // self._per_scale)
        self._check_code_book()
        if not self._nested:
            sizes["absmax"] = self._float_bytes("absmax", ((self._scale_count,),), f"floats, {self._scale_count}")
        elif self._header("absmax") != ((self._scale_count,), "U8"):
            raise self._wrong(self._companions["absmax"], f"U8 {(self._scale_count,)}")
        else:
            blocks = -(-self._scale_count // self._per_nested)
            sizes["absmax"] = 1
            for kind, length in (("nested_absmax", blocks), ("nested_quant_map", _NESTED_CODES)):
                sizes[kind] = self._float_bytes(kind, ((length,),), f"floats, {length} in number")
        self._sizes = sizes

    def _find_shape(self) -> tuple[int, int]:
        self._header("quant_state")
        blob = self._companions["quant_state"]
        state = JsonFields(self.file, read_blob(self._file, blob), f"{blob}: ")
        kind = state.text("quant_type", most=16)
        if kind not in _CODES:
            raise state.error("quant_type", " or ".join(_CODES), kind)
        self.format, self._codes = f"bitsandbytes {kind}", _CODES[kind]
        self._per_scale = state.integer("blocksize", most=_LARGEST_BLOCK, multiple_of=2)
        rows, columns = state.integers("shape", (), least=1, length=2)
        self._nested = "nested_absmax" in self._companions
        if self._nested:
            self._per_nested, self._offset = state.integer("nested_blocksize"), state.number("nested_offset")
        expected = -(-rows * columns // 2), 1
        if self._file.headers[self.name] != (expected, "U8"):
            raise self._wrong(self.name, f"U8 {expected}")
        # rows of whole blocks are read a block of columns at a time, others only whole
        self.block = self._per_scale if columns % self._per_scale == 0 else columns
        return rows, columns

    def _check_code_book(self) -> None:
        """bitsandbytes computes with the codes of the type, whatever the file has."""
        import numpy as np

        shape, dtype = self._header("quant_map")
        name = self._companions["quant_map"]
        if (shape, dtype) != ((len(self._codes),), "F32"):
            raise self._wrong(name, f"F32 ({len(self._codes)},)")
        found: np.ndarray = self._file.octets(name).view("<f4")
        if not np.allclose(found, np.asarray(self._codes), rtol=0, atol=_CLOSE):
            raise CheckpointError.of(self.file, f"is not the code book of {self.format}", name=name)

    def size(self, bounds: tuple[slice, ...]) -> int:
        rows, columns = bounds
        return count((self._parts(rows)[0],)) + self._scales_size(rows, columns)  # rows are read whole

    def _parts(self, rows: slice) -> tuple[slice, slice]:
        """Bytes of codes, and scales, of the blocks that have these rows."""
        columns = self.shape[1]
        first, last = rows.start * columns // self._per_scale, -(-rows.stop * columns // self._per_scale)
        return slice(first * self._per_scale // 2, -(-rows.stop * columns // 2)), slice(first, max(first, last))

    def _nested_part(self, scales: slice) -> slice:
        return slice(scales.start // self._per_nested, -(-scales.stop // self._per_nested))

    def _decode(self, rows: slice, columns: slice) -> torch.Tensor:
        height, width = rows.stop - rows.start, self.shape[1]
        part, of_scales = self._parts(rows)
        codes, scales = self._file.read(self.name, (part, slice(0, 1))), self._scales(of_scales)
        if width % self._per_scale == 0:
            block = slice(columns.start // self._per_scale, columns.stop // self._per_scale)
            some = codes.view(height, width // 2)[:, columns.start // 2 : columns.stop // 2]
            values = numbers.unpack_nibbles(some, self._codes, high_first=True)
            by_block = scales.view(height, width // self._per_scale)[:, block].unsqueeze(-1)
            values.unflatten(1, (-1, self._per_scale)).mul_(by_block)
            return values
        values = numbers.unpack_nibbles(codes.view(1, -1), self._codes, high_first=True)[0]
        values *= scales.repeat_interleave(self._per_scale)[: len(values)]
        start = rows.start * width - of_scales.start * self._per_scale
        return values[start : start + height * width].view(height, width)[:, columns]

    def _scales(self, part: slice) -> torch.Tensor:
        """(scales,) float32."""
        stored = self._companion("absmax", (part,))
        if self._nested:
            nested = self._nested_part(part)
            codes = self._companion("nested_quant_map", (slice(0, _NESTED_CODES),)).float()
            of_blocks = self._companion("nested_absmax", (nested,)).float().repeat_interleave(self._per_nested)
            start = part.start - nested.start * self._per_nested
            scales = codes[stored.int()] * of_blocks[start : start + len(stored)] + self._offset
        else:
            scales = stored.float()
        if not bool(scales.isfinite().all()):
            raise CheckpointError.of(self.file, "holds scales that are not finite", name=self._companions["absmax"])
        return scales

    def _scales_size(self, rows: slice, columns: slice) -> int:
        scales = self._parts(rows)[1]
        size = self._sizes["absmax"] * count((scales,))
        if self._nested:
            nested = self._sizes["nested_absmax"] * count((self._nested_part(scales),))
            size += nested + self._sizes["nested_quant_map"] * _NESTED_CODES
        return size


class LlmInt8Matrix(RowScaledMatrix):
    """LLM.int8(): signed bytes, and of each row the largest absolute value, which 127 stands for."""

    dtypes = ("I8",)
    scale = "SCB"
    kinds = ("SCB", "weight_format")

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        if "weight_format" in self._companions:
            shape, dtype = self._header("weight_format")
            name = self._companions["weight_format"]
            if dtype != "U8" or math.prod(shape) != 1:
                raise self._wrong(name, "U8, one")
            if (order := int(self._file.octets(name)[0])) != 0:  # others are for some GPU's tiles
                problem = "says an order of the weight that cannot be read"
                raise CheckpointError.of(self.file, problem, name=name, expected="0 (row)", found=order)

    def _scales(self, rows: slice) -> torch.Tensor:
        return super()._scales(rows) / 127
