"""Finished image files as Pillow's images that keep what these say when they are saved, and saving them."""

from __future__ import annotations

import html
import io
import os
from base64 import b64encode
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from engine.errors import ArgumentError
from launcher.requests.image_metadata import read_made, read_xmp, save_options
from launcher.requests.output_files import FORMATS, OutputName, check_paths, made_folders, write_file

if TYPE_CHECKING:
    from PIL import Image as PIL
    from PIL.ImageFile import ImageFile


def open_picture(file: bytes, image_format: str) -> PIL.Image:
    """Open a file in a format of ours. `save` of what is returned, in png, jpeg or webp, keeps prompt and seed, and
    that a model drew it."""
    return _picture_class(image_format)(io.BytesIO(file))


@cache
def _picture_class(image_format: str) -> type[ImageFile]:
    from PIL import JpegImagePlugin, PngImagePlugin, WebPImagePlugin

    plugins: dict[str, Any] = {
        "png": PngImagePlugin.PngImageFile,
        "jpeg": JpegImagePlugin.JpegImageFile,
        "webp": WebPImagePlugin.WebPImageFile,
    }

    plugin = plugins[image_format]

    class Picture(plugin):  # type: ignore[misc, valid-type]
        """A picture that has been made here. A changed copy of it is an ordinary image."""

        def save(self, fp: str | os.PathLike[str] | IO[bytes], format: str | None = None, **options: Any) -> None:
            """Save it as Pillow does, with what its file says of how it was made, in a folder that is made if there is
            none."""
            path = Path(fp) if isinstance(fp, str | os.PathLike) else None
            wanted = FORMATS.get(path.suffix.lower(), "") if path is not None and format is None else format
            own = (wanted or "").lower()
            if own in plugins:
                options = {**save_options(own, read_made(self), xmp=read_xmp(self)), **options}
            with made_folders([path] if path is not None else []):
                super().save(fp, format, **options)

        def __reduce__(self) -> tuple[Any, ...]:
            return _empty_picture, (image_format,), self.__getstate__()

    return Picture


def _empty_picture(image_format: str) -> ImageFile:
    """Make a picture for pickle or copy to fill in."""
    kind = _picture_class(image_format)
    return kind.__new__(kind)


def save_pictures(
    path: str | os.PathLike[str],
    files: Sequence[bytes],
    image_format: str,
    *,
    seeds: Sequence[int],
    prompt: str,
    first: int = 0,
) -> list[Path]:
    """Write files in `image_format` to a path, as `Result.save` does. first: the index of the first of them."""
    if not isinstance(path, str | os.PathLike):
        raise ArgumentError.of("path", "a path; result.files are the files as bytes", path)
    name = OutputName(os.fspath(path), "path")
    numbers = range(len(files)) if len(files) > 1 else [None]
    paths = [
        name.of(index=index, seed=seed, prompt=prompt, number=number)
        for index, (seed, number) in enumerate(zip(seeds, numbers, strict=True), first)
    ]
    check_paths(paths, "path")
    with made_folders(paths):
        for each, file in zip(paths, files, strict=True):
            data = io.BytesIO(file)
            if name.format != image_format:
                open_picture(file, image_format).save(data := io.BytesIO(), name.format)
            write_file(each, data.getvalue())
    return paths


def write_html(pictures: Iterable[tuple[bytes, str, str]], notes: Iterable[str] = ()) -> str:
    """Return HTML that shows pictures side by side, given as file, format and caption, and notes below them."""
    figures = "".join(
        f'<figure style="margin:0"><img src="data:image/{image_format};base64,{b64encode(file).decode()}" '
        f'alt="{html.escape(caption)}" style="max-width:100%"><figcaption>{html.escape(caption)}</figcaption></figure>'
        for file, image_format, caption in pictures
    )
    below = "".join(f"<div>{html.escape(note)}</div>" for note in notes)
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{figures}</div>{below}'
