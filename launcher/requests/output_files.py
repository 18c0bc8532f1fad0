"""Names image files, checks that they can be written, and writes them: those of `krea2 generate`, and a result's."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from string import Formatter

from engine.errors import ArgumentError, Krea2Error

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
DEFAULT = "krea2.png"
_FIELDS = ("index", "seed", "prompt")  # which a name may have in braces
_LONGEST_SLUG = 40  # characters of a prompt in a name


class OutputName:
    """The name of one file or of several: of a folder, or with `{index}`, `{seed}` or `{prompt}` in it.

    Raises `ArgumentError` about the parameter if images cannot have it.
    """

    def __init__(self, text: str, parameter: str = "output") -> None:
        self._text = os.path.join(text, DEFAULT) if text.endswith(os.sep) or os.path.isdir(text) else text
        try:
            pieces = [*Formatter().parse(self._text)]
        except ValueError:
            pieces = [("", "", "", None)]
        self.fields = {name for _, name, _, _ in pieces if name is not None}
        for _, name, width, conversion in pieces:
            if name is None:
                continue
            number = "" if name == "prompt" else "(0[0-9]{1,2})?"
            if name not in _FIELDS or conversion or not re.fullmatch(number, width or ""):
                allowed = "a path in which braces hold index, seed or prompt, as {index:03}, or are doubled"
                raise ArgumentError.of(parameter, allowed, text)
        self.format = FORMATS.get(Path(self._text).suffix.lower(), "")
        if not self.format:
            raise ArgumentError.of(
                parameter, f"a path that ends in {', '.join(FORMATS)}, or a folder, as images/", text
            )

    def of(self, *, index: int, seed: int, prompt: str, number: int | None) -> Path:
        """Name an image. number: what follows the stem where there are several and no field tells them apart."""
        path = Path(self._text.format(index=index, seed=seed, prompt=slug(prompt)))
        return path if self.fields or number is None else path.with_stem(f"{path.stem}_{number}")


def slug(prompt: str) -> str:
    """The beginning of a prompt as a part of a file's name."""
    return re.sub(r"[\W_]+", "-", prompt.lower())[: _LONGEST_SLUG + 1].strip("-")[:_LONGEST_SLUG] or "no-prompt"


def check_paths(paths: Sequence[Path], parameter: str = "output") -> None:
    """Check that each image has a path of its own, and that they can be written once missing folders are made. Raises
    `ArgumentError` about the parameter."""
    taken: set[str] = set()
    for path in paths:
        if (place := os.path.abspath(path)) in taken:
            raise ArgumentError(
                f"{parameter} must have {{index}} in it: two images would be {path}", parameter=parameter
            )
        taken.add(place)
    folders: set[Path] = set()
    for path in paths:
        there, names = path.parent, [path.name]
        while not os.path.lexists(there):
            there, names = there.parent, [there.name, *names]
        for name in names:
            try:
                os.lstat(there / name)
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:  # too long, or with a character that no name may have
                allowed = f"a path that can be written ({getattr(error, 'strerror', None) or error})"
                raise ArgumentError.of(parameter, allowed, str(path)) from None
        if os.path.isdir(path) or not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
            raise ArgumentError.of(parameter, "a file in a folder that can be made and written", str(path))
        folders.add(path.parent)


@contextmanager
def made_folders(paths: Sequence[Path]) -> Iterator[None]:
    """Make the folders that the files need, others may make the same; in the end remove those of them that are empty.
    Raises `Krea2Error`."""
    made: list[Path] = []
    try:
        for folder in {path.parent: None for path in paths}:
            try:
                for each in [each for each in (folder, *folder.parents) if not each.exists()][::-1]:
                    with suppress(FileExistsError):
                        each.mkdir()
                        made.append(each)
            except OSError as error:
                raise Krea2Error(f"{folder}: cannot be made: {error.strerror or error}") from None
        yield
    finally:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()


def write_file(path: Path, data: bytes) -> None:
    """Write a file that is either whole or not there. Raises `Krea2Error` if it cannot be written."""
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        if not path.parent.exists():  # whoever had made it has removed it while it was empty
            path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:  # which names no file if writing fails, as on a full disk
        raise Krea2Error(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)
