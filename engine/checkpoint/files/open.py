"""Finds the file, or the files, that hold a component, and opens them as what their content says, not their names."""

from __future__ import annotations

import os
from os.path import isdir
from pathlib import Path

from engine.checkpoint.files.file_sets import PICKLE_SUFFIXES, file_sets, is_shard, set_of
from engine.checkpoint.files.gguf_header import MAGIC as GGUF_MAGIC
from engine.checkpoint.files.gguf_split import first_part, open_gguf
from engine.checkpoint.files.mapped_file import MappedFile
from engine.checkpoint.files.safetensors_file import SafetensorsFile, ShardedFile
from engine.checkpoint.files.stored import TensorFile
from engine.config.bounded_json import FILE_LIMITS, JsonLimits
from engine.config.in_its_place import LOOKED_AT, in_its_place
from engine.errors import CheckpointError

# A zip archive, which torch.save writes; a bare pickle of protocol 2 to 5; the tar archive of torch before 0.1.10
# starts with a file's name, and is told by the suffix alone.
_PICKLES = (b"PK\x03\x04", *(bytes((0x80, protocol)) for protocol in range(2, 6)))
_PIECE_SUFFIX = ".distcp"


def open_component(path: Path, component: str, stem: str) -> TensorFile:
    """Open a component's file, or its shards.

    path: the file, an index or a shard, a folder that holds `stem`.safetensors, its shards, or a single file of
    tensors, or a repository's folder with such a folder called `component`. Of several precisions in a folder the best
    that is whole is taken. Raises `CheckpointError`.
    """
    if isdir(path):  # which, unlike Path.is_dir, raises nothing for a name that is too long
        path = _in_folder(component_folder(path, component), stem)
    return open_tensor_file(path)


def open_tensor_file(path: Path, limits: JsonLimits = FILE_LIMITS) -> TensorFile:
    """Open a safetensors file, all shards of a sharded one by its index or any of them, or a GGUF file, all parts of
    one in parts by any of them. Raises `CheckpointError` for anything else, and for pickles, which run whatever code is
    in them when they are read.

    limits: of the header of a safetensors file.
    """
    file = MappedFile(path)
    start = file.data[:LOOKED_AT]
    file.close()
    if start.startswith(GGUF_MAGIC):
        return open_gguf(path)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= file.size:
        return _open_shards(path) if is_shard(path.name) else SafetensorsFile(path, limits)
    if (other := in_its_place(start)) is not None:
        raise file.error(other)
    if start.startswith(_PICKLES) or path.suffix in PICKLE_SUFFIXES:
        expected = "a safetensors or GGUF file"
        raise file.error("is a pickle, which can run any code when it is loaded", expected=expected)
    return ShardedFile(path) if start.lstrip().startswith(b"{") else SafetensorsFile(path, limits)


def component_folder(folder: Path, component: str) -> Path:
    """Return the folder itself, or the component's inside a repository in the diffusers layout."""
    inner = folder / component
    return inner if inner.is_dir() or (folder / "model_index.json").exists() else folder


def _in_folder(folder: Path, stem: str) -> Path:
    if not isdir(folder):
        return folder / f"{stem}.safetensors"
    names = _names(folder)
    if found := file_sets(names, stem):
        return folder / found[0].entry
    found = file_sets(names)
    # one model, whatever it is called and in whatever precisions
    indexed = [each for each in found if each.index is not None]
    by_stem = {each.stem: each.entry for each in reversed(indexed or found)}
    others = [] if indexed else list({first_part(name) for name in names if name.endswith(".gguf")})
    entries = sorted((*by_stem.values(), *others))
    if len(entries) > 1:
        raise CheckpointError.of(folder, "holds several files of tensors: name one of them", found=", ".join(entries))
    if not entries and any(name.endswith(_PIECE_SUFFIX) for name in names):
        problem = "is a checkpoint of torch.distributed in pieces, which a trainer goes on from; merge them into a "
        raise CheckpointError.of(folder, f"{problem}safetensors file first, as accelerate merge-weights does")
    pickles = sorted(name for name in names if name.endswith(PICKLE_SUFFIXES))  # which are refused for what they are
    return folder / next(iter((*entries, *pickles)), f"{stem}.safetensors")


def _open_shards(path: Path) -> ShardedFile:
    """All that a shard is one of, by an index if there is one."""
    shards = set_of(path.name, _names(path.parent))
    if shards is None:  # names twice the same shard
        raise CheckpointError.of(path, "is a shard that is there twice; give an index of the shards")
    if shards.index is not None:
        return ShardedFile(path.with_name(shards.index))
    if shards.absent:
        problem = "is one of several shards, and others are missing"
        raise CheckpointError.of(path, problem, expected=", ".join(shards.absent))
    return ShardedFile(path.with_name(shards.pattern), shards.shards)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise CheckpointError.of(folder, f"cannot be read: {error.strerror}") from None
