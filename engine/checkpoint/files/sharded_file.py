"""Tensors over several safetensors files, the shards, that an index (`*.safetensors.index.json`) lists."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.checkpoint.files.mapped_file import MappedFile, shown
from engine.checkpoint.files.safetensors_file import LARGEST_HEADER, SafetensorsFile, parse_json_object
from engine.checkpoint.files.stored import Bounds, Header
from engine.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    import torch

# Of quantised layers: what one shard says of its own would be lost behind another's.
_QUANTIZATION_METADATA = "_quantization_metadata"


class ShardedFile:
    """All shards as one file. See `TensorFile`. path: the index."""

    def __init__(self, path: Path, metadata: Mapping[str, str], shards: Mapping[str, SafetensorsFile]) -> None:
        """shards: by tensor name."""
        self.path, self.metadata, self._shards = path, metadata, shards
        self.headers: dict[str, Header] = {name: shard.headers[name] for name, shard in shards.items()}

    def read(self, name: str, bounds: Bounds) -> torch.Tensor:
        """See `TensorFile.read`."""
        return self._shards[name].read(name, bounds)

    def octets(self, name: str, part: slice | None = None) -> np.ndarray:
        """See `TensorFile.octets`."""
        return self._shards[name].octets(name, part)

    def header_file(self, name: str) -> Path:
        """Return the shard that holds the tensor."""
        return self._shards[name].path

    def close(self) -> None:
        """See `TensorFile.close`."""
        for shard in self._shards.values():
            shard.close()


def open_sharded(index: Path) -> ShardedFile:
    """Open every shard that the index names. Raises `CheckpointError` if one is missing, lies outside the index's
    folder, or does not hold what the index says."""
    weight_map = _read_weight_map(index)
    shards: dict[str, SafetensorsFile] = {}
    metadata: dict[str, str] = {}
    for number, shard in enumerate(sorted(set(weight_map.values()))):
        file = SafetensorsFile(index.parent / shard)
        if twice := shards.keys() & file.headers.keys():
            name, problem = min(twice), "tensor is in another shard too"
            raise CheckpointError.of(file.path, problem, name=shown(name), found=shards[name].path.name)
        if number and metadata.get(_QUANTIZATION_METADATA) != file.metadata.get(_QUANTIZATION_METADATA):
            raise CheckpointError.of(file.path, "differs from another shard's", name=_QUANTIZATION_METADATA)
        shards |= dict.fromkeys(file.headers, file)
        metadata = {**file.metadata, **metadata}
    for name, shard in weight_map.items():
        if name not in shards or shards[name].path.name != shard:
            problem = "tensor is missing, though the index lists it"
            raise CheckpointError.of(index.parent / shard, problem, name=shown(name))
    return ShardedFile(index, metadata, shards)


def _read_weight_map(index: Path) -> dict[str, str]:
    """The file names of the shards by tensor name."""
    file = MappedFile(index)
    if file.size > LARGEST_HEADER:
        raise file.error("is too long for an index", expected=f"at most {LARGEST_HEADER} bytes", found=file.size)
    weight_map: Any = parse_json_object(file, file.data[:]).get("weight_map")
    shards = [*weight_map.values()] if isinstance(weight_map, dict) else []
    if not shards or not all(isinstance(shard, str) for shard in shards):
        expected = "file names by tensor name"
        raise file.error("has a value that does not fit", name="weight_map", expected=expected)
    for shard in sorted(set(shards)):
        if not shard or Path(shard).name != shard:
            raise file.error("names a shard outside its folder", name="weight_map", found=shard)
    return weight_map
