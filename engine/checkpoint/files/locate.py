"""Finds the file, or the files, that hold a component."""

from __future__ import annotations

from pathlib import Path

from engine.checkpoint.files.open import open_tensor_file
from engine.checkpoint.files.stored import TensorFile
from engine.errors import CheckpointError

_INDEX = ".index.json"


def open_component(path: Path, component: str, stem: str) -> TensorFile:
    """Open a component's file, or the shards of its index.

    path: the file or index, a folder that holds `stem`.safetensors, its index, or a single file of tensors, or a
    repository's folder with such a folder called `component`. Raises `CheckpointError`.
    """
    if is_folder(path):
        path = _in_folder(component_folder(path, component), stem)
    return open_tensor_file(path)


def is_folder(path: Path) -> bool:
    """Also of what is too long or too odd for any path."""
    try:
        return path.is_dir()
    except OSError:
        return False


def component_folder(folder: Path, component: str) -> Path:
    """The folder itself, or the component's inside of a repository in the diffusers layout."""
    inner = folder / component
    return inner if inner.is_dir() or (folder / "model_index.json").exists() else folder


def _in_folder(folder: Path, stem: str) -> Path:
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors{_INDEX}"
    if single.exists() or index.exists():
        return single if single.exists() else index
    if not folder.is_dir():
        return single
    indexes, files = ([*folder.glob(f"*{suffix}")] for suffix in (_INDEX, ".safetensors"))
    candidates = indexes or [*files, *folder.glob("*.gguf")]
    if len(candidates) > 1:
        names = ", ".join(sorted(file.name for file in candidates))
        raise CheckpointError.of(folder, "holds several files of tensors: name one of them", found=names)
    return candidates[0] if candidates else single
