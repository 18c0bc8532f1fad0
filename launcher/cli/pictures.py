"""The pictures that prompts of `krea2 generate` begin from: looked at before anything is loaded, and then sent."""

from __future__ import annotations

import asyncio
import io
import os
import select
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError
from engine.pictures.pixels import Pixels
from launcher.awake import TICK_S, AwakeLoop
from launcher.cli.options.numbers import NUMBER, WHOLE_NUMBER
from launcher.messages.client_messages import Generate
from launcher.messages.limits import Limits
from launcher.messages.message_parts import Outpaint
from launcher.parameters.values import PICTURES, outpaint

if TYPE_CHECKING:
    from launcher.pictures.prepared import PreparedPicture
    from launcher.pictures.reading import PictureReader

STDIN = "-"
_AT_ONCE = 1 << 20  # bytes that are read of stdin, of which a pipe gives fewer
_MOST_LAID_OUT = 32  # pictures of a call that are decoded at once; of more it is seen that they can be read


def _one(_: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> str | None:
    """Take a picture that is given once. Raises `ArgumentError` for more, of which all but one would be forgotten."""
    if len(given) > 1:
        told = "all prompts begin from it, and lines of --prompts may have their own"
        option = parameter.opts[0]
        raise ArgumentError(f"{option} must be one picture, got {len(given)}: {told}", parameter=parameter.name)
    return given[0] if given else None


_OPTIONS = (
    click.option(
        "--image",
        metavar="PATH",
        multiple=True,
        callback=_one,
        help="A picture to begin from: png, jpg or webp; - is stdin.",
    ),
    click.option(
        "--mask",
        metavar="PATH",
        multiple=True,
        callback=_one,
        help="White, or transparent, where --image is repainted; the rest stays.",
    ),
    click.option(
        "--strength",
        type=NUMBER,
        help="How much of --image changes: 0 to 1.  [default: 0.6; 1 with --mask or --outpaint]",
    ),
    click.option(
        "--strength-steps",
        metavar="partial|full",
        help="partial: of --steps those are run that the strength leaves; full: all.  [default: partial]",
    ),
    click.option("--outpaint", metavar="SIDES", help="Pixels to add to --image, as left=256,top=64."),
    click.option(
        "--mask-crop", type=WHOLE_NUMBER, help="Draw only what is repainted and so many pixels around it, at full size."
    ),
    click.option(
        "--mask-feather",
        type=WHOLE_NUMBER,
        help="Pixels over which what is drawn fades into what stays.  [default: 8]",
    ),
)
_SETTINGS = ("strength", "strength_steps", "outpaint", "mask_crop", "mask_feather")

Command = TypeVar("Command", bound=Callable[..., Any])


def picture_options(command: Command) -> Command:
    """Add the options about the picture that images begin from, which the command hands to `Pictures`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


class Pictures:
    """The pictures of a call's prompts, by the prompt's index.

    options: of the command, for all prompts; own: paths of each prompt, by parameter, which go before those.
    prompts_file: of the command. Raises `ArgumentError` for options that cannot be.
    """

    def __init__(
        self, options: Mapping[str, Any], own: Sequence[Mapping[str, str]], prompts_file: str | None = None
    ) -> None:
        shared = {name: options[name] for name in PICTURES if options[name] is not None}
        self._paths = [{**shared, **each} for each in own]
        self._settings = {name: options[name] for name in _SETTINGS if options[name] is not None}
        if "outpaint" in self._settings:
            self._settings["outpaint"] = Outpaint(**outpaint("outpaint", self._settings["outpaint"]))
        if any(self._paths) and not options["image_input"]:
            raise ArgumentError("image needs the encoder, which --no-image-input leaves out", parameter="image")
        if [*shared.values(), prompts_file].count(STDIN) > 1:
            raise ArgumentError("only one of --image, --mask and --prompts can be -, which is stdin")
        self._stdin: bytes | None = None
        self._known: dict[object, PreparedPicture] = {}
        self._reader: PictureReader | None = None
        self._running = ExitStack()
        self._stopped: BaseException | None = None

    @property
    def loads_encoder(self) -> bool:
        """Whether the engine has to be able to take pictures."""
        return any(self._paths)

    def parameters(self, index: int) -> dict[str, Any]:
        """The fields of a prompt's `Generate` that say what its pictures are, and what is done with them.

        Options about pictures are of the prompts that have one, if any has.
        """
        paths = self._paths[index]
        names = tuple(name for name in PICTURES if name in paths)
        return {"pictures": names, **(self._settings if names or not self.loads_encoder else {})}

    def lay_out(self, index: int, request: Generate, model: ModelConfig, limits: Limits) -> PreparedPicture | None:
        """Lay out the pictures of a prompt as the front-end will, without their pixels: their sizes and warnings.

        None if it has none, or many were laid out before. Raises `ArgumentError` about what is wrong with them.
        """
        paths = self._paths[index]
        if not paths:
            return None
        from launcher.pictures.file_kinds import check_bytes, kind_of
        from launcher.pictures.wanted import Wanted

        key = tuple(paths.items()), repr(Wanted.of(request, model, limits))
        if key in self._known:
            return self._known[key]
        files = self.read(index)
        for name, data in files.items():
            kind_of(name, data)
            check_bytes(name, data, limits.max_image_bytes)
        if len(self._known) >= _MOST_LAID_OUT:
            return None
        if self._reader is None:
            from launcher.pictures.reading import PictureReader

            # a loop that looks again and again, and so hears also of a signal that comes just before a wait
            self._runner = self._running.enter_context(asyncio.Runner(loop_factory=AwakeLoop))
            self._runner.get_loop().set_exception_handler(self._hear)
            self._reader = PictureReader()
            self._running.callback(self._reader.close)
        try:
            laid = self._runner.run(self._reader.read(request, files, model, limits))
        except RuntimeError as error:  # the loop was stopped
            raise self._stopped or error from None
        self._known[key] = replace(laid, pixels=Pixels(laid.width, laid.height, b""), patch=None)
        return self._known[key]

    def read(self, index: int) -> dict[str, bytes]:
        """Read the files of a prompt, by the parameters that they are. None is kept but stdin's. Raises `ArgumentError`
        about one that cannot be read."""
        from launcher.client.uploads import read_pictures

        paths = self._paths[index]
        return read_pictures({name: self._of_stdin(name) if path == STDIN else path for name, path in paths.items()})

    def close(self) -> None:
        """End the process that has laid out pictures."""
        self._running.close()
        self._reader = None

    def _hear(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Hear what a callback has raised. What a signal's handler raises is no `Exception`, and ends the loop."""
        error = context.get("exception")
        if error is None or isinstance(error, Exception):
            loop.default_exception_handler(context)
        else:
            self._stopped = error
            loop.stop()

    def _of_stdin(self, name: str) -> bytes:
        if self._stdin is None:
            if sys.stdin is None or sys.stdin.isatty():
                raise ArgumentError(f"{name} is -, and there is no file on stdin", parameter=name)
            self._stdin = read_stdin()
        return self._stdin


def read_stdin(most: int | None = None) -> bytes:
    """Read stdin to its end, or until it has given `most` bytes, and hear of signals meanwhile: one that comes just
    before a read does not interrupt it. Raises `OSError`."""
    try:
        file = sys.stdin.fileno()
    except io.UnsupportedOperation:  # it is none of the system's
        return sys.stdin.buffer.read(-1 if most is None else most)
    data = bytearray()
    while most is None or len(data) < most:
        if select.select([file], [], [], TICK_S)[0]:
            if not (part := os.read(file, _AT_ONCE)):
                break
            data += part
    return bytes(data)
