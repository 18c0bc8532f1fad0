"""A checkpoint that was split for one tp beforehand: a rank reads whole files, from their first byte to their last.

`krea2 convert --layout sharded --tp N` writes the folder: json files and tokenizer as in the diffusers layout, and
`tp-N/rank-R/COMPONENT.safetensors`, whose tensors are the rank's parameters as it keeps them in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from engine.checkpoint.files.open import open_tensor_file
from engine.checkpoint.files.stored import INT8_GROUP, Bounds, PlainTensor, TensorFile, count
from engine.checkpoint.layouts.component import Component
from engine.checkpoint.layouts.tensors import Source, sources_by_parameter
from engine.config.bounded_json import read_json
from engine.errors import ArgumentError, CheckpointError

if TYPE_CHECKING:
    import torch

FULL_PRECISION = "full_precision"  # in the metadata: a json list of parameters whose products are in the model's dtype
_FOLDER = re.compile(r"tp-([1-9][0-9]*)")


def component_file(folder: Path, tp: int, rank: int, component: str) -> Path:
    """Return where a rank's part of a component lies."""
    return folder / f"tp-{tp}" / f"rank-{rank}" / f"{component}.safetensors"


def split_degrees(folder: Path) -> list[int]:
    """List the tp degrees that a folder is split for."""
    return sorted(int(match[1]) for path in folder.glob("tp-*") if (match := _FOLDER.fullmatch(path.name)))


def is_split(folder: Path, tp: int) -> bool:
    """Whether the folder is split for `tp` ranks. Raises `ArgumentError` if only for others and not whole too."""
    degrees = split_degrees(folder)
    if degrees and tp not in degrees and not any((folder / "transformer").glob("*.safetensors*")):
        listed = ", ".join(map(str, degrees))
        raise ArgumentError.of("tp", f"{listed}, for which {folder} has been split", tp)
    return tp in degrees


def shard_sources(sources: Iterable[Source], tp: int) -> list[Source]:
    """List the tensors of a rank's file that these become: one a parameter, which is read as it is."""
    shards = []
    for parameter, together in sources_by_parameter(sources).items():
        shapes = [source.shard_shape(tp) for source in together]
        shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        shards.append(Source(parameter, shape, parameter, float32=together[0].float32))
    return shards


def open_shard(folder: Path, tp: int, rank: int, component: str) -> Component:
    """Open a rank's part of a component. Raises `CheckpointError` if the file is damaged."""
    file = open_tensor_file(component_file(folder, tp, rank, component))
    try:
        full_precision = read_json(file.metadata.get(FULL_PRECISION, "[]"))
    except ValueError:
        full_precision = None
    if not isinstance(full_precision, list) or not all(isinstance(name, str) for name in full_precision):
        raise CheckpointError.of(file.path, "is not a json list of names", name=FULL_PRECISION)
    named, scales = set(full_precision), {f"{name}_scale" for name in file.headers}
    tensors: dict[str, PlainTensor] = {}
    for name in (each for each in file.headers if each not in scales):
        tensors[name] = _EightBitShard(file, name) if f"{name}_scale" in file.headers else PlainTensor(file, name)
        tensors[name].full_precision = name in named
    return Component(file, tensors, f"split for tp {tp}", str)


class _EightBitShard(PlainTensor):
    """A parameter of one rank in 8 bits, with its scales beside it."""

    def __init__(self, file: TensorFile, name: str) -> None:
        super().__init__(file, name)
        self._scale = f"{name}_scale"
        scales = file.headers[self._scale]
        rows, columns = self.shape if len(self.shape) == 2 else (0, 0)
        expected = {"F8_E4M3": ((rows, 1), "F32"), "I8": ((rows, columns // INT8_GROUP), "F16")}.get(self.format)
        if scales != expected:
            problem = "scales do not fit their weight"
            raise CheckpointError.of(file.path, problem, name=self._scale, expected=expected, found=scales)
        self.weight_format = "fp8" if self.format == "F8_E4M3" else "int8"

    def size(self, bounds: Bounds) -> int:
        rows, elements = count(bounds[:1]), count(bounds)
        return elements + (4 * rows if self.weight_format == "fp8" else 2 * elements // INT8_GROUP)

    def read(self, bounds: Bounds) -> torch.Tensor:
        values, scales = self.read_eight_bit(bounds)
        if self.weight_format == "fp8":
            return values.float() * scales
        import torch

        from engine.kernels.int8 import dequantize_groups

        return dequantize_groups(values.contiguous(), scales.contiguous(), torch.float32)

    def read_eight_bit(self, bounds: Bounds) -> tuple[torch.Tensor, torch.Tensor]:
        rows, columns = bounds
        groups = slice(columns.start // INT8_GROUP, columns.stop // INT8_GROUP)
        if self.weight_format == "fp8":
            groups = slice(0, 1)
        return self._file.read(self.name, bounds), self._file.read(self._scale, (rows, groups))
