"""What becomes of files of all kinds: their colours, which way is up, and what is said of those that are refused."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image, ImageCms, ImageOps

from engine.errors import ArgumentError
from launcher.messages.limits import Limits
from launcher.pictures import decoding
from launcher.pictures.decoding import PictureFile
from launcher.pictures.geometry import lay_out
from tests.launcher.pictures.files import Read, noise, saved
from tests.launcher.pictures.test_geometry import wanted

SIDE = 96
FULL = Image.linear_gradient("L").crop((0, 0, SIDE, SIDE))


def png(depth: int, colour_type: int, rows: bytes, *chunks: bytes, size: tuple[int, int] = (SIDE, SIDE)) -> bytes:
    """A PNG file of rows that each begin with their filter."""
    header = struct.pack(">IIBBBBB", *size, depth, colour_type, 0, 0, 0)
    parts = (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def swapped_profile() -> bytes:
    """sRGB, but red is blue."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"----", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"----", b"bXYZ", 1)


def rounded_profile() -> bytes:
    """sRGB as another program has it, which changes some colours by a level or two."""
    at = SRGB.index(b"rXYZ") + 4  # in the list of what the profile has, which says where
    (start,) = struct.unpack(">I", SRGB[at : at + 4])
    (red,) = struct.unpack(">i", SRGB[start + 8 : start + 12])
    return SRGB[: start + 8] + struct.pack(">i", red + 50) + SRGB[start + 12 :]


def animated(kind: str) -> bytes:
    first, second = (Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue"))
    return saved(first, kind, save_all=True, append_images=[second], lossless=True)


RED = Image.new("RGB", (SIDE, SIDE), "red")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
NOISE = noise(SIDE, SIDE)
HALF = Image.merge("RGBA", (*RED.split(), Image.new("L", RED.size, 128)))
KEYED = Image.new("P", (SIDE, SIDE), 1)
KEYED.putpalette([255, 0, 0, 0, 0, 255])
PICTURES: dict[str, tuple[bytes, Image.Image]] = {
    "grey": (saved(FULL), FULL),
    "black and white": (saved(FULL.convert("1")), FULL.convert("1")),
    "palette": (saved(KEYED), Image.new("RGB", RED.size, "blue")),
    "palette, transparent": (saved(KEYED, transparency=1), Image.new("RGB", RED.size, "white")),
    "a transparent colour": (saved(RED, transparency=(255, 0, 0)), Image.new("RGB", RED.size, "white")),
    "half transparent": (saved(HALF), Image.new("RGB", RED.size, (255, 127, 127))),
    "grey, half transparent": (saved(HALF.convert("LA")), Image.new("RGB", RED.size, (165, 165, 165))),
    "opaque": (saved(Image.merge("RGBA", (*NOISE.split(), Image.new("L", RED.size, 255)))), NOISE),
    "grey of 16 bits": (
        png(16, 0, b"".join(b"\0" + struct.pack(">96H", *range(0, 96 * 257, 257)) for _ in range(SIDE))),
        Image.frombytes("L", (SIDE, SIDE), bytes(range(96)) * SIDE),
    ),
    "colours of 16 bits": (png(16, 2, (b"\0" + b"\xff\xff\0\0\0\0" * SIDE) * SIDE), RED),
    "16 bits with a transparent level": (
        png(16, 0, (b"\0" + b"\x80\x80" * SIDE) * SIDE, chunk(b"tRNS", b"\x10\0")),
        Image.new("RGB", RED.size, (128, 128, 128)),
    ),
    "WebP": (saved(HALF, "WEBP", lossless=True), Image.new("RGB", RED.size, (255, 127, 127))),
    "first frame of a PNG": (animated("PNG"), RED),
    "first frame of a WebP": (animated("WEBP"), RED),
    "sRGB's profile": (saved(NOISE, icc_profile=SRGB), NOISE),
    "sRGB's profile by others": (saved(NOISE, icc_profile=rounded_profile()), NOISE),
    "another profile": (saved(RED, icc_profile=swapped_profile()), Image.new("RGB", RED.size, "blue")),
    "another profile, transparent": (
        saved(HALF, icc_profile=swapped_profile()),
        Image.new("RGB", RED.size, (127, 127, 255)),
    ),
    "a damaged profile": (saved(NOISE, icc_profile=SRGB[:200] + b"\xff" * 100), NOISE),
    "no profile at all": (saved(NOISE, icc_profile=b"nonsense"), NOISE),
    "a profile of something else": (saved(FULL, icc_profile=SRGB), FULL),
    "damaged EXIF": (saved(NOISE, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), NOISE),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_every_kind_of_file_becomes_the_colours_that_a_viewer_shows(read: Read, kind: str) -> None:
    data, shown = PICTURES[kind]
    assert read(image=data).pixels.rgb == shown.convert("RGB").tobytes()


@pytest.mark.parametrize(
    "image",
    [RED, RED.convert("L"), RED.convert("CMYK"), Image.new("CMYK", RED.size, (0, 255, 255, 0))],
    ids=["RGB", "grey", "CMYK", "CMYK by hand"],
)
def test_photos_have_their_colours_but_for_what_jpeg_loses(read: Read, image: Image.Image) -> None:
    found = read(image=saved(image, "JPEG", quality=100)).pixels.rgb
    wanted = image.convert("RGB").tobytes()
    assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_is_turned_as_its_exif_says(read: Read, kind: str) -> None:
    image = noise(128, 96).resize((16, 12)).resize((128, 96))
    for orientation in range(1, 10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = saved(image, kind, exif=exif, quality=95, lossless=True)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        picture = read(image=data)
        assert (picture.answer_size, picture.pixels.rgb) == (upright.size, upright.tobytes())


def test_a_photo_far_above_what_is_drawn_is_decoded_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    scaled = decoding.scaled
    monkeypatch.setattr(decoding, "scaled", lambda image, *rest: (sizes.append(image.size), scaled(image, *rest))[1])
    photo = noise(150, 100).resize((1200, 800))
    file = PictureFile("image", saved(photo, "JPEG"), 10**7)
    canvas, picture = file.picture(lambda size: lay_out(size, wanted(width=144, height=96)))
    assert sizes == [(150, 100)]
    assert picture.size == canvas.drawn == (144, 96)


def webp_header(name: bytes, body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + 8 + len(body)) + b"WEBP" + name + struct.pack("<I", len(body)) + body


HUGE = {
    "PNG": png(8, 2, bytes(100), size=(10_000, 10_000)),
    "JPEG": b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01\xff\xda" + bytes(90),
    "VP8X": webp_header(b"VP8X", b"\x10\0\0\0" + b"\xfe\x3f\0" * 2),
    "VP8L": webp_header(b"VP8L", b"\x2f\xff\xff\xff\x0f" + bytes(50)),
    "VP8": webp_header(b"VP8 ", b"\x50\x42\x00\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(50)),
}


@pytest.mark.parametrize("kind", HUGE)
def test_what_a_header_says_is_too_large_before_anything_is_decoded(read: Read, kind: str) -> None:
    with pytest.raises(ArgumentError, match=r"^image must have at most 64 megapixels, got ") as raised:
        read(image=HUGE[kind])
    assert raised.value.parameter == "image"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is an empty file"),
        (b"GIF89a", "got GIF"),
        (b"\0\0\0\x20ftypheic\0\0\0\0", "got HEIC"),
        (b"\0\0\0\x20ftypmif1\0\0\0\0", "got HEIC"),
        (b"\0\0\0\x20ftypavif\0\0\0\0", "got AVIF"),
        (b"\0\0\0\x20ftypisom\0\0\0\0", "got a video"),
        (b"II*\0\x08\0\0\0", "got TIFF"),
        (b"%PDF-1.7", "got PDF"),
        (b'<?xml version="1.0"?>\n<svg>', "got SVG"),
        (b"<!DOCTYPE html><p>404", "got a web page"),
        (b"iVBORw0KGgoAAAANSUhEUg", "got base64 text"),
        (b"data:image/png;base64,", "got a data URL"),
        (b"hello", "it is none of these"),
        (saved(NOISE)[:-5000], "could not be read: the file ends too early"),
        (saved(NOISE, "JPEG")[:3000], "could not be read: the file ends too early"),
        (saved(NOISE, "WEBP")[:3000], "could not be read: the file ends too early"),
        (png(8, 2, bytes(100)), "could not be read: the file ends too early"),
        (png(8, 2, b"\x09" * 100_000), "could not be read: the PNG file is damaged"),
        (png(8, 2, b"", chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**25)))), "its texts or its colour profile are"),
        (png(8, 2, b"", chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**25)))), "its texts or its colour profile are"),
    ],
)
def test_a_file_that_cannot_be_read_says_what_it_is_or_what_is_wrong_with_it(
    read: Read, data: bytes, message: str
) -> None:
    with pytest.raises(ArgumentError, match=f"^image .*{message}") as raised:
        read(image=data)
    assert raised.value.parameter == "image"


def test_files_are_bounded(read: Read) -> None:
    small = Limits(max_image_bytes=1000, max_image_pixels=9000)
    with pytest.raises(ArgumentError, match=r"^image must be a file of at most 0.001 MB, got 0.0"):
        read(image=saved(NOISE), limits=small)
    with pytest.raises(ArgumentError, match=r"^mask must have at most 0.009 megapixels, got 96 × 96, which is 0.0$"):
        read(image=saved(Image.new("1", (90, 90))), mask=saved(Image.new("1", (96, 96))), limits=small)
