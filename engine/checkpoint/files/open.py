"""Finds the file, or the files, that hold a component, and opens them as what their content says, not their names."""

from __future__ import annotations

from os.path import isdir
from pathlib import Path

from engine.checkpoint.files.gguf_file import GgufFile
from engine.checkpoint.files.gguf_header import MAGIC as GGUF_MAGIC
from engine.checkpoint.files.mapped_file import MappedFile
from engine.checkpoint.files.safetensors_file import SafetensorsFile, ShardedFile
from engine.checkpoint.files.stored import TensorFile
from engine.config.bounded_json import FILE_LIMITS, JsonLimits
from engine.config.in_its_place import LOOKED_AT, in_its_place
from engine.errors import CheckpointError

_INDEX = ".index.json"
# A zip archive, which torch.save writes; a bare pickle of protocol 2 to 5; the tar archive of torch before 0.1.10
# starts with a file's name, and is told by the suffix alone.
_PICKLES = (b"PK\x03\x04", *(bytes((0x80, protocol)) for protocol in range(2, 6)))
_PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")


def open_component(path: Path, component: str, stem: str) -> TensorFile:
    """Open a component's file, or the shards of its index.

    path: the file or index, a folder that holds `stem`.safetensors, its index, or a single file of tensors, or a
    repository's folder with such a folder called `component`. Raises `CheckpointError`.
    """
    if isdir(path):  # which, unlike Path.is_dir, raises nothing for a name that is too long
        path = _in_folder(component_folder(path, component), stem)
    return open_tensor_file(path)


def open_tensor_file(path: Path, limits: JsonLimits = FILE_LIMITS) -> TensorFile:
    """Open a safetensors file, the index of a sharded one, or a GGUF file. Raises `CheckpointError` for anything else,
    and for pickles, which run whatever code is in them when they are read.

    limits: of the header of a safetensors file.
    """
    file = MappedFile(path)
    start = file.data[:LOOKED_AT]
    file.close()
    if start.startswith(GGUF_MAGIC):
        return GgufFile(path)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= file.size:
        return SafetensorsFile(path, limits)
    if (other := in_its_place(start)) is not None:
        raise file.error(other)
    if start.startswith(_PICKLES) or path.suffix in _PICKLE_SUFFIXES:
        expected = "a safetensors or GGUF file"
        raise file.error("is a pickle, which can run any code when it is loaded", expected=expected)
    return ShardedFile(path) if start.lstrip().startswith(b"{") else SafetensorsFile(path, limits)


def component_folder(folder: Path, component: str) -> Path:
    """Return the folder itself, or the component's inside a repository in the diffusers layout."""
    inner = folder / component
    return inner if inner.is_dir() or (folder / "model_index.json").exists() else folder


def _in_folder(folder: Path, stem: str) -> Path:
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors{_INDEX}"
    if single.exists() or index.exists() or not folder.is_dir():
        return single if single.exists() or not index.exists() else index
    indexes, files = ([*folder.glob(f"*{suffix}")] for suffix in (_INDEX, ".safetensors"))
    candidates = indexes or [*files, *folder.glob("*.gguf")]
    if len(candidates) > 1:
        names = ", ".join(sorted(file.name for file in candidates))
        raise CheckpointError.of(folder, "holds several files of tensors: name one of them", found=names)
    return candidates[0] if candidates else single
