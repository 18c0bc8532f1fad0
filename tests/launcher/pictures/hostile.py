"""Picture files that are damaged or meant to do harm, chosen at random by a seed."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

from PIL import Image

from tests.launcher.pictures.files import noise, saved
from tests.launcher.pictures.test_decoding import SRGB, chunk, png, webp_header


def hostile(seed: int) -> tuple[str, bytes]:
    """Make a file of one kind, of which every `len(KINDS)` seeds in a row have each. Returns its kind, too."""
    kind = KINDS[seed % len(KINDS)]
    return kind.__name__.removeprefix("_"), kind(random.Random(seed))


def _good(rng: random.Random) -> bytes:
    return _files()[rng.randrange(len(_files()))]


@cache
def _files() -> list[bytes]:
    """Small files of all formats, with all that they may carry."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a" * 300
    exif.get_ifd(0x8825)[1] = "N"
    carried: dict[str, Any] = {"exif": exif, "icc_profile": SRGB}
    colour, alpha = noise(150, 120), noise(150, 120, "RGBA")
    frames = {"save_all": True, "append_images": [noise(150, 120, seed=1)]}
    return [
        saved(colour, **carried),
        saved(alpha.convert("P"), **carried),
        saved(colour.convert("L"), pnginfo=None, **carried),
        saved(colour, **frames, **carried),
        saved(colour, "JPEG", **carried),
        saved(colour, "JPEG", progressive=True, subsampling=0, **carried),
        saved(colour.convert("CMYK"), "JPEG", **carried),
        saved(colour, "MPO", **frames),
        saved(colour, "WEBP", **carried),
        saved(alpha, "WEBP", lossless=True, **carried),
        saved(colour, "WEBP", **frames, **carried),
    ]


def _truncated(rng: random.Random) -> bytes:
    data = _good(rng)
    return data[: rng.randrange(len(data))]


def _flipped(rng: random.Random) -> bytes:
    data = bytearray(_good(rng))
    for _ in range(rng.choice((1, 1, 4, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _flipped_header(rng: random.Random) -> bytes:
    data = bytearray(_good(rng))
    for _ in range(rng.choice((1, 4))):
        data[rng.randrange(4, min(len(data), 600))] = rng.choice((0, 1, 127, 128, 255))
    return bytes(data)


def _flipped_in_valid_chunks(rng: random.Random) -> bytes:
    """A PNG file whose checksums are right, whatever its chunks have become."""
    data, parts, at = _files()[rng.randrange(4)], [], 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        name, body = data[at + 4 : at + 8], bytearray(data[at + 8 : at + 8 + size])
        if body and rng.random() < 0.4:
            body[rng.randrange(min(len(body), 64))] = rng.randrange(256)
        parts.append(chunk(name, bytes(body)) * rng.choice((1, 1, 1, 1, 2)))
        at += size + 12
    return data[:8] + b"".join(parts)


def _spliced(rng: random.Random) -> bytes:
    one, other = _good(rng), _good(rng)
    return one[: rng.randrange(len(one))] + other[rng.randrange(len(other)) :]


def _repeated(rng: random.Random) -> bytes:
    data = _good(rng)
    start = rng.randrange(len(data))
    return data[:start] + data[start : start + rng.randrange(1, 2000)] * rng.randrange(2, 50) + data[start:]


def _nonsense(rng: random.Random) -> bytes:
    beginning = rng.choice((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\xff\xff\0\0WEBPVP8X", b"", b"\0"))
    return beginning + rng.randbytes(rng.choice((0, 1, 16, 4096)))


def _other_size(rng: random.Random) -> bytes:
    """A header that says another size than the pixels have."""
    sides = [rng.choice((0, 1, 7, 150, 4000, 16_383, 65_535, 2**31 - 1, 2**32 - 1)) for _ in range(2)]
    pixels = b"\0" * rng.choice((1, 451, 10_000))
    if rng.random() < 0.4:
        return png(rng.choice((1, 2, 4, 8, 16, 99)), rng.choice((0, 2, 3, 4, 6)), pixels, size=(sides[0], sides[1]))
    if rng.random() < 0.5:
        data = bytearray(_files()[rng.choice((4, 5, 6))])
        at = next(at for at in range(len(data)) if data[at : at + 2] in (b"\xff\xc0", b"\xff\xc2")) + 5
        data[at : at + 4] = struct.pack(">HH", *(min(side, 65_535) for side in sides))
        return bytes(data)
    body = b"\x10\0\0\0" + b"".join(min(side, 2**24 - 1).to_bytes(3, "little") for side in sides)
    return webp_header(b"VP8X", body) + _files()[9][12:]


def _zeros(rng: random.Random) -> bytes:
    """Many pixels in few bytes."""
    side, depth, kind = rng.choice((3000, 5000, 8000, 10_000)), *rng.choice(((8, 2), (8, 6), (16, 6), (1, 0), (16, 0)))
    row = 1 + side * depth * {0: 1, 2: 3, 6: 4}[kind] // 8
    rows = zlib.compressobj(1)
    data = b"".join(rows.compress(bytes(row)) for _ in range(side)) + rows.flush()
    header = struct.pack(">IIBBBBB", side, side, depth, kind, 0, 0, rng.choice((0, 0, 1)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _large(rng: random.Random) -> bytes:
    """Many pixels in the other formats."""
    side = rng.choice((4000, 6000, 7900))
    image = Image.new(rng.choice(("RGB", "L", "CMYK")), (side, rng.choice((side, 1000))), 77)
    if rng.random() < 0.5:
        return saved(image, "JPEG", progressive=rng.random() < 0.5, subsampling=0)
    return saved(image.convert("RGBA"), "WEBP", lossless=rng.random() < 0.5, method=0)


def _bomb(rng: random.Random) -> bytes:
    """Texts, profiles and EXIF that grow."""
    zeros = zlib.compress(bytes(rng.choice((2**20, 2**24, 2**27))), 9)
    bombs = {
        b"zTXt": b"Raw profile type exif\0\0" + zeros,
        b"iTXt": b"XML:com.adobe.xmp\0\1\0\0\0" + zeros,
        b"iCCP": b"icc\0\0" + zeros,
        b"tEXt": b"a\0" + b"b" * 100_000,
    }
    name = rng.choice([*bombs])
    return png(8, 2, b"\0" * 28_000, *[chunk(name, bombs[name])] * rng.choice((1, 20, 200)))


def _exif(rng: random.Random) -> bytes:
    """Directories that have too many entries, point beyond the end, or at themselves."""
    count = rng.choice((1, 10, 65_535))
    kinds, counts = (0, 1, 2, 3, 5, 12, 13, 99), (0, 1, 2**16, 2**31, 2**32 - 1)
    tags = (0x0112, 0x8769, 0x8825, 0x014A, 0xA005, 0x02BC, rng.randrange(65_536))
    entries = b"".join(
        struct.pack(">HHII", rng.choice(tags), rng.choice(kinds), rng.choice(counts), rng.choice((0, 8, 2**32 - 1, 6)))
        for _ in range(min(count, 2000))
    )
    exif = b"MM\0*\0\0\0\x08" + struct.pack(">H", count) + entries + struct.pack(">I", rng.choice((0, 8, 2**32 - 1)))
    kind = rng.choice(("PNG", "JPEG", "WEBP"))
    return saved(noise(150, 120), kind, exif=b"Exif\0\0" + exif[:60_000])


def _profile(rng: random.Random) -> bytes:
    profile = bytearray(SRGB)
    for _ in range(rng.choice((1, 4, 32))):
        profile[rng.randrange(len(profile))] = rng.randrange(256)
    image = noise(150, 120, rng.choice(("RGB", "L", "RGBA")))
    return saved(image, icc_profile=bytes(profile[: rng.choice((len(profile), 200))]))


def _tiny(rng: random.Random) -> bytes:
    size = rng.choice(((1, 1), (1, 5000), (5000, 1), (2, 3), (1, 64)))
    image = noise(*size, rng.choice(("1", "L", "LA", "RGB", "RGBA", "I;16")) if rng.random() < 0.5 else "RGB")
    return saved(image, rng.choice(("PNG", "PNG", "JPEG", "WEBP")) if image.mode in ("L", "RGB") else "PNG")


def _animated(rng: random.Random) -> bytes:
    """Many frames, some of which are damaged."""
    frames = [noise(64, 64, seed=number) for number in range(rng.choice((2, 50)))]
    data = bytearray(saved(frames[0], rng.choice(("PNG", "WEBP")), save_all=True, append_images=frames[1:]))
    for _ in range(rng.choice((0, 1, 10))):
        data[rng.randrange(100, len(data))] ^= 255
    return bytes(data)


def _scans(rng: random.Random) -> bytes:
    """A JPEG file that has a scan again and again, each of which is worked through."""
    side = rng.choice((200, 6000))
    data = saved(Image.new("L", (side, side), 99), "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    return data[:scan] + data[scan:-2] * rng.choice((10, 20_000)) + data[-2:]


KINDS: tuple[Callable[[random.Random], bytes], ...] = (
    _truncated,
    _flipped,
    _flipped_header,
    _flipped_in_valid_chunks,
    _spliced,
    _repeated,
    _nonsense,
    _other_size,
    _exif,
    _profile,
    _tiny,
    _animated,
    _bomb,
    _truncated,
    _flipped,
    _flipped_header,
    _other_size,
    _zeros,
    _large,
    _scans,
)
SMALL = tuple(seed for seed in range(len(KINDS)) if KINDS[seed] not in (_zeros, _large, _scans, _bomb))
