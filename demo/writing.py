"""Writes files of tensors that are either whole or not there."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file, in the place of one that may be there. Ends the program if it cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata)
        partial.replace(file)
    except (OSError, SafetensorError) as error:  # which names no file where the disk is full
        sys.exit(f"{file} cannot be written: {error}")
