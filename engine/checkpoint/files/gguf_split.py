"""A GGUF file in parts, as llama.cpp's `llama-gguf-split` writes them: each is a GGUF file with tensors of its own, and
says which of how many it is; the first has the metadata (https://github.com/ggml-org/llama.cpp, `tools/gguf-split`)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from engine.checkpoint.files.gguf_file import GgufFile
from engine.checkpoint.files.mapped_file import shown
from engine.checkpoint.files.stored import Bounds, Header, TensorFile

if TYPE_CHECKING:
    import numpy as np
    import torch

_COUNT, _NUMBER, _TENSORS = "split.count", "split.no", "split.tensors.count"
_MOST_PARTS = 1000
_NAME = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)
_MERGE = "or make one file of them: llama-gguf-split --merge FIRST-PART NEW-FILE"


def first_part(name: str) -> str:
    """Return what the first part is called of those that a part belongs to; of any other file its own name."""
    found = _NAME.fullmatch(name)
    return name if found is None else f"{found['stem']}-{1:05}-of-{found['count']}.gguf"


def open_gguf(path: Path) -> GgufFile | SplitGgufFile:
    """Open a GGUF file; of one in parts, all of them, whichever is given. Raises `CheckpointError`, also if a part is
    missing or says that it is another."""
    file = GgufFile(path)
    return file if _number(file, _COUNT, default=1) == 1 else SplitGgufFile(file)


class SplitGgufFile(TensorFile):
    """All parts as one file. parts: in order. path: the first's."""

    def __init__(self, file: GgufFile) -> None:
        """Open the other parts, which lie beside this one. Raises `CheckpointError`."""
        count, found = _number(file, _COUNT), _NAME.fullmatch(file.path.name)
        if found is None or int(found["count"]) != count:
            problem = f"is one of {count} parts of a GGUF file, which is not called as they are; give all their names, "
            raise file.error(problem + _MERGE, expected=f"a name that ends in -{1:05}-of-{count:05}.gguf")
        self.parts: list[GgufFile] = []
        for number in range(count):
            path = file.path.with_name(f"{found['stem']}-{number + 1:05}-of-{count:05}.gguf")
            if not path.exists():
                problem = f"is one of {count} parts of a GGUF file, which must lie beside one another, {_MERGE}"
                raise file.error(problem, expected=path.name, found="no such file")
            part = file if path.name == file.path.name else GgufFile(path)
            for key, expected in ((_COUNT, count), (_NUMBER, number)):
                if (said := _number(part, key)) != expected:
                    raise part.error("does not belong to the other parts", name=key, expected=expected, found=said)
            self.parts.append(part)
        self.path, self.metadata = self.parts[0].path, self.parts[0].metadata
        self.headers: dict[str, Header] = {}
        self._parts: dict[str, GgufFile] = {}  # by tensor
        for part in self.parts:
            if twice := self.headers.keys() & part.headers.keys():
                raise part.error("tensor is in another part too", name=min(twice))
            self.headers |= part.headers
            self._parts |= dict.fromkeys(part.headers, part)
        if (total := _number(file, _TENSORS, default=len(self.headers))) != len(self.headers):
            problem = "says another number of tensors than its parts have"
            raise file.error(problem, name=_TENSORS, expected=len(self.headers), found=total)

    def read(self, name: str, bounds: Bounds) -> torch.Tensor:
        return self._parts[name].read(name, bounds)

    def octets(self, name: str, part: slice | None = None) -> np.ndarray:
        return self._parts[name].octets(name, part)

    def close(self) -> None:
        for part in self.parts:
            part.close()


def _number(file: GgufFile, key: str, default: int | None = None) -> int:
    text = file.metadata.get(key)
    if text is None and default is not None:
        return default
    if text is None or not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise file.error("has a value that does not fit", name=key, expected="a whole number", found=shown(text))
    if key == _COUNT and not 1 <= int(text) <= _MOST_PARTS:
        raise file.error("has a value that does not fit", name=key, expected=f"1 to {_MOST_PARTS}", found=text)
    return int(text)
