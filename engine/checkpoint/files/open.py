"""Opens a file of tensors of whichever kind it is, told by its content and not by its name."""

from __future__ import annotations

from pathlib import Path

from engine.checkpoint.files.gguf_file import GgufFile
from engine.checkpoint.files.gguf_header import MAGIC as GGUF_MAGIC
from engine.checkpoint.files.mapped_file import MappedFile
from engine.checkpoint.files.safetensors_file import SafetensorsFile
from engine.checkpoint.files.sharded_file import open_sharded
from engine.checkpoint.files.stored import TensorFile
from engine.errors import CheckpointError

# A zip archive, which torch.save writes; a bare pickle of protocol 2 to 5; the tar archive of torch before 0.1.10
# starts with a file's name, and is told by the suffix alone.
_PICKLES = (b"PK\x03\x04", *(bytes((0x80, protocol)) for protocol in range(2, 6)))
_PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")


def open_tensor_file(path: Path) -> TensorFile:
    """A safetensors file, the index of a sharded one, or a GGUF file. Raises `CheckpointError` for anything else, and
    for pickles, which run whatever code is in them when they are read."""
    file = MappedFile(path)
    start = file.data[:9]
    size = file.size
    file.close()
    if start.startswith(GGUF_MAGIC):
        return GgufFile(path)
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= size:
        return SafetensorsFile(path)
    if start.startswith(_PICKLES) or path.suffix in _PICKLE_SUFFIXES:
        raise CheckpointError.of(
            path, "is a pickle, which can run any code when it is loaded", expected="a safetensors or GGUF file"
        )
    if start.lstrip().startswith(b"{"):
        return open_sharded(path)
    return SafetensorsFile(path)
