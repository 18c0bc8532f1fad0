"""The process that reads pictures: small, alone with whatever a file does to it, and ended with its front-end."""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from engine.errors import ArgumentError
from launcher import socket_frames
from launcher.messages.configs import PicturesConfig
from launcher.messages.encoding import encode
from launcher.pictures.decoding import PictureFile, configure_pillow
from launcher.pictures.exchange import READ_S, UP, Begun, Laid, Refused, decode_work
from launcher.pictures.geometry import compare_mask, lay_out
from launcher.pictures.layers import Layers, make_layers
from launcher.processes import read_config, watch_parent

_OVER_WHITE = (
    "image: what is transparent in it was laid over white; where that is to be repainted, send the file as mask, too"
)
MOST_MEMORY = 1_000_000_000  # bytes of address space


def run_pictures() -> None:
    """Read pictures for its whole life: its configuration comes on stdin, its end when stdin ends."""
    config = read_config(PicturesConfig)
    watch_parent(lambda _: os._exit(0))
    configure_pillow()
    for limit, most in ((resource.RLIMIT_AS, MOST_MEMORY), (resource.RLIMIT_CORE, 0)):  # no picture gets to a disk
        with suppress(OSError, ValueError):  # macOS has no such limit of memory
            resource.setrlimit(limit, (most, most))
    with socket.socket(fileno=config.socket_fd) as front_end, suppress(EOFError, ConnectionError):
        front_end.sendall(UP)
        while True:
            _serve(front_end)


def _serve(front_end: socket.socket) -> None:
    """Read the pictures of one request. Raises `EOFError` once there are no more."""
    work = decode_work(socket_frames.receive_message(front_end))
    wanted = work.wanted
    files = {name: socket_frames.receive(front_end, size) for name, size in zip(wanted.names, work.sizes, strict=True)}
    answer: Laid | Refused
    parts: Sequence[bytes] = ()
    try:
        name = "image"
        _begin(front_end, name)
        file = PictureFile(name, files.pop(name), wanted.limits.max_image_pixels)
        source = file.size
        canvas, picture = file.picture(partial(lay_out, wanted=wanted))
        mask, warnings = None, canvas.warnings
        if "mask" in files:
            name = "mask"
            _begin(front_end, name)
            file = PictureFile(name, files.pop(name), wanted.limits.max_image_pixels)
            compared = compare_mask(file.size, source)
            mask, told = file.mask()
            warnings = (*warnings, *([compared] if compared else ()), *told)
        elif file.lies_over_white:
            warnings = (*warnings, _OVER_WHITE)
        layers = make_layers(canvas, picture, mask, wanted)
        answer, parts = _answer(layers, canvas.size, warnings)
    except ArgumentError as error:
        answer = Refused(error.message, error.parameter)
    except MemoryError:
        answer = Refused(f"{name} could not be read: it takes more memory than there is for it", name)
    signal.setitimer(signal.ITIMER_PROF, 0)
    socket_frames.send(front_end, encode(answer), *parts)


def _begin(front_end: socket.socket, name: str) -> None:
    """Say that a file is being read. Whoever takes too long over it is killed by SIGPROF, whatever it does then."""
    socket_frames.send(front_end, encode(Begun(name)))
    signal.setitimer(signal.ITIMER_PROF, READ_S)


def _answer(layers: Layers, answer_size: tuple[int, int], warnings: tuple[str, ...]) -> tuple[Laid, Sequence[bytes]]:
    parts = (
        layers.drawn.tobytes(),
        layers.mask or b"",
        b"" if layers.alpha is None else layers.alpha.tobytes(),
        b"" if layers.source is None else layers.source.tobytes(),
    )
    rgb, mask, alpha, source = map(len, parts)
    laid = Laid(layers.drawn.size, answer_size, warnings, (rgb, mask, alpha, source), layers.inner, layers.box)
    return laid, parts
