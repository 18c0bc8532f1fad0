"""Ways to damage a checkpoint, for the tests that must survive them."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

FULL = "File too large"  # EFBIG; a full disk says "No space left on device", in the same place


def copy_checkpoint(source: Path, target: Path) -> Path:
    """A copy that shares the files' data; whoever changes a file replaces it."""
    return shutil.copytree(source, target, copy_function=os.link)


@contextmanager
def full_disk(room: int = 0) -> Iterator[None]:
    """Let no file of this process be longer than `room` bytes, which is a full disk without being root.

    See setrlimit(2). Python ignores the signal that comes with it, and would keep the part that fits of a module that
    it compiles."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = before


@contextmanager
def bounded_memory(more: int = 2 << 30) -> Iterator[None]:
    """Lets the process allocate `more` bytes beyond what it has, what it has freed and kept included.

    Reading that goes on for as long as a damaged file says collects what it reads, and so fails here, within the same
    amount of work on every machine; what goes round in circles ends with pytest's own time limit. Only Linux has such
    a bound.
    """
    if sys.platform != "linux":
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = psutil.Process().memory_info().data + more
    resource.setrlimit(resource.RLIMIT_DATA, (allowed if before[1] < 0 else min(allowed, before[1]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def rewrite_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Apply `change` to the tensors of a safetensors file."""
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        metadata = {"format": "pt"} | (opened.metadata() or {})
    change(tensors)
    file.unlink()
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, file, metadata)


def rewrite_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to the object of a json file."""
    values = json.loads(file.read_text())
    change(values)
    replace_bytes(file, json.dumps(values).encode())


def replace_bytes(file: Path, data: bytes) -> None:
    file.unlink()
    file.write_bytes(data)


def tensor_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))
