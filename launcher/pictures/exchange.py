"""What the front-end and the process that reads pictures say to each other, by `launcher/socket_frames.py`.

When the process has come up it says so once, with `UP`. Then the front-end sends `Work` and the files; the answers are
a `Begun` for each file, then `Laid` with its parts, or `Refused`.
"""

from __future__ import annotations

import msgspec

from launcher.pictures.wanted import Wanted

READ_S = 10.0  # for a file, of the processor's time
UP = b"\1"
MOST_BYTES = 2**20  # of an answer, without its parts


class Work(msgspec.Struct, frozen=True):
    """Files to be read, which follow, and what for. sizes: theirs in bytes."""

    wanted: Wanted
    sizes: tuple[int, ...]


class Begun(msgspec.Struct, frozen=True, tag=True):
    """A file is being read from now on."""

    name: str


class Laid(msgspec.Struct, frozen=True, tag=True):
    """The picture as it is drawn from, in parts that follow: `sizes` in bytes of rgb, mask, alpha and source, each 0
    where there is none. The rest is of `PreparedPicture` and `Patch`."""

    drawn: tuple[int, int]
    answer_size: tuple[int, int]
    warnings: tuple[str, ...]
    sizes: tuple[int, int, int, int]
    inner: tuple[int, int] | None = None
    box: tuple[int, int, int, int] | None = None


class Refused(msgspec.Struct, frozen=True, tag=True):
    """What is wrong with a file, or with what is wanted of it."""

    message: str
    parameter: str | None


Answer = Begun | Laid | Refused
decode_work = msgspec.msgpack.Decoder(Work).decode
decode_answer = msgspec.msgpack.Decoder(Begun | Laid | Refused).decode
