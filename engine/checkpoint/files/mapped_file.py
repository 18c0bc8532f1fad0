"""A file mapped into memory, from which tensors are taken without a copy; and what any container says of a tensor."""

from __future__ import annotations

import contextlib
import math
import mmap
import warnings
from os.path import exists  # unlike Path's, it raises nothing for a name that is too long
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from engine.checkpoint.files.stored import Bounds
from engine.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    import torch


# torch warns of every read-only buffer, once a process; see `TensorFile.read`
warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)


class Dtype(NamedTuple):
    """An element's type. torch: its name there. size: bytes of an element."""

    torch: str
    size: int


DTYPES = {
    "F64": Dtype("float64", 8),
    "F32": Dtype("float32", 4),
    "F16": Dtype("float16", 2),
    "BF16": Dtype("bfloat16", 2),
    "F8_E4M3": Dtype("float8_e4m3fn", 1),
    "F8_E5M2": Dtype("float8_e5m2", 1),
    "F8_E8M0": Dtype("float8_e8m0fnu", 1),
    "F8_E4M3FNUZ": Dtype("float8_e4m3fnuz", 1),
    "F8_E5M2FNUZ": Dtype("float8_e5m2fnuz", 1),
    "C64": Dtype("complex64", 8),
    "I64": Dtype("int64", 8),
    "U64": Dtype("uint64", 8),
    "I32": Dtype("int32", 4),
    "U32": Dtype("uint32", 4),
    "I16": Dtype("int16", 2),
    "U16": Dtype("uint16", 2),
    "I8": Dtype("int8", 1),
    "U8": Dtype("uint8", 1),
    "BOOL": Dtype("bool", 1),
}

# Linux reads no more ahead at once than the disk takes in one request, and forgets the rest; few take less than this.
_READ_AHEAD = 512 << 10  # bytes
# No tensor of a model comes near either; beyond them torch's own sizes and strides overflow.
_MOST_DIMENSIONS = 8
_MOST_ELEMENTS = 1 << 48
_ARIA2 = ".aria2"
_LONGEST_SHOWN = 100  # characters of what a file says, in an error


class MappedFile:
    """The bytes of a regular file, read-only. Any thread may read.

    The mapping is shared, not private: a private one that may be written to counts as memory, and is refused where the
    file is larger than that.
    """

    def __init__(self, path: Path) -> None:
        """Map the file. Raises `CheckpointError` if it is missing, empty or cannot be read."""
        self.path = path
        try:
            if not path.is_file():  # opening a pipe would wait for ever
                raise CheckpointError.of(path, "is not a file" if path.exists() else "the file is missing")
            if exists(f"{path}{_ARIA2}"):  # the file may have its whole length already, with nothing in it
                problem = f"is not downloaded yet: aria2 keeps {path.name}{_ARIA2} beside it until it is whole"
                raise CheckpointError.of(path, problem)
            with path.open("rb") as file:
                self._map: mmap.mmap | None = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CheckpointError.of(path, f"cannot be read: {error.strerror}") from None
        except ValueError:  # what mmap says to no bytes
            raise CheckpointError.of(path, "the file is empty") from None
        self.size = len(self._map)

    def error(
        self, problem: str, *, name: str | None = None, expected: object = None, found: object = None
    ) -> CheckpointError:
        """Return the error that names this file. name, found: what the file says, shortened here."""
        name, found = (None if said is None else shown(said) for said in (name, found))
        return CheckpointError.of(self.path, problem, name=name, expected=expected, found=found)

    def check_shape(self, name: str, shape: object) -> tuple[int, ...]:
        """Return the shape that a header says. Raises `CheckpointError` if no tensor can have it."""
        if (
            not isinstance(shape, (list, tuple))
            or len(shape) > _MOST_DIMENSIONS
            or not all(type(length) is int and length >= 0 for length in shape)
            or math.prod(max(1, length) for length in shape) > _MOST_ELEMENTS
        ):
            allowed = f"up to {_MOST_DIMENSIONS} lengths of at most {_MOST_ELEMENTS} elements"
            raise self.error("has a shape that no tensor has", name=name, expected=allowed, found=str(shape))
        return tuple(shape)

    @property
    def data(self) -> mmap.mmap:
        """The mapping itself. Raises `CheckpointError` once the file is closed."""
        if self._map is None:
            raise self.error("cannot be read: it was closed")
        return self._map

    def close(self) -> None:
        """Let go of the mapping. Tensors that were read stay valid: the last of them ends it."""
        self._map = None  # not closed: torch does not hold the buffer of a mapping, only the mapping

    def tensor(self, start: int, shape: tuple[int, ...], dtype: str, bounds: Bounds) -> torch.Tensor:
        """Map a slice of the tensor of this shape and dtype (of `DTYPES`) whose first byte is at `start`.

        It is on the CPU, in the shape of `bounds`, a read-only view of the mapping; bools and what is not aligned are
        copies. Raises `CheckpointError` once the file is closed.
        """
        import torch

        name, size = DTYPES[dtype]
        kept = (bounds[0].stop - bounds[0].start, *shape[1:]) if shape else ()
        count = math.prod(kept)
        if count == 0:
            return torch.empty([bound.stop - bound.start for bound in bounds], dtype=getattr(torch, name))
        if shape:
            start += bounds[0].start * math.prod(shape[1:]) * size
        self._will_need(start, count * size)
        octets = torch.frombuffer(self.data, dtype=torch.uint8, count=count * size, offset=start)
        if name == "bool":
            values = octets.ne(0)  # a bool of any other value than 0 and 1 is undefined
        else:
            values = (octets.clone() if start % size else octets).view(getattr(torch, name))
        return values.view(kept)[(slice(None), *bounds[1:])] if shape else values.view(())

    def copy(self, start: int, count: int, part: slice | None = None) -> np.ndarray:
        """Read `count` bytes, or a part of them, to (bytes,) uint8, by no mapping: if the file was cut short, touching
        its mapping kills the process. Raises `CheckpointError` if they are there no more."""
        import numpy as np

        if part is not None:
            start, count = start + part.start, part.stop - part.start
        try:
            octets = np.fromfile(self.path, np.uint8, count, offset=start)
        except OSError as error:
            raise self.error(f"cannot be read: {error.strerror}") from None
        if octets.size != count:
            raise self.error("has become shorter while it was read")
        return octets

    def _will_need(self, start: int, count: int) -> None:
        """Have the disk read ahead of the page faults, which would wait for it many times over."""
        end = start + count
        with contextlib.suppress(OSError):  # advice that not every file system takes
            for piece in range(start - start % mmap.PAGESIZE, end, _READ_AHEAD):
                self.data.madvise(mmap.MADV_WILLNEED, piece, min(_READ_AHEAD, end - piece))


def shown(value: object) -> str:
    """Shorten what a file says for an error."""
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."
