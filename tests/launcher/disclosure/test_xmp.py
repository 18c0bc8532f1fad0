"""What files say, as XMP, of where their pictures come from."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

import engine
from engine.pictures.pixels import Pixels
from launcher.disclosure.disclosure import Disclosure
from launcher.disclosure.xmp import COMPOSITE, DRAWN, packet
from launcher.pictures.prepared import Patch, PreparedPicture
from launcher.requests.image_files import encode_image, encode_preview
from launcher.requests.image_metadata import read_xmp
from tests.launcher.requests.test_image_files import PIXELS, REQUEST

FORMATS = ("png", "jpeg", "webp")
_DESCRIPTION = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
_IPTC, _XMP = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}", "{http://ns.adobe.com/xap/1.0/}"
SOURCE = f"{_IPTC}DigitalSourceType"
AI_SYSTEM = f"{_IPTC}AISystemUsed"
TOLD = {AI_SYSTEM: "Krea-2-Turbo", f"{_XMP}CreatorTool": f"krea2-engine {engine.__version__}"}


def said(file: bytes) -> dict[str, str | None] | None:
    """What the XMP of a file says, None where it has none."""
    with Image.open(io.BytesIO(file)) as image:
        image.load()
        xmp = read_xmp(image)
    return None if xmp is None else read(xmp)


def read(xmp: bytes) -> dict[str, str | None]:
    (description,) = ElementTree.fromstring(xmp.decode()).iter(_DESCRIPTION)
    return {element.tag: element.text for element in description}


def written(output_format: str, disclosure: Disclosure | None = None, **fields: Any) -> bytes:
    request = replace(REQUEST, output_format=output_format, **fields)
    more = {} if disclosure is None else {"disclosure": disclosure}
    return encode_image(PIXELS.tobytes(), request, seed=8, made_with={"model": "Krea-2-Turbo"}, **more)


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_file_says_that_a_model_drew_it_and_which(output_format: str) -> None:
    assert said(written(output_format)) == {SOURCE: DRAWN, **TOLD}


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_client_can_have_all_left_out_but_that(output_format: str) -> None:
    assert said(written(output_format, metadata=False)) == {SOURCE: DRAWN}


@pytest.mark.parametrize("metadata", [True, False])
@pytest.mark.parametrize("output_format", FORMATS)
def test_the_operator_can_have_it_left_out(output_format: str, metadata: bool) -> None:
    assert said(written(output_format, Disclosure(xmp=False), metadata=metadata)) is None


def test_previews_say_it_too_unless_the_operator_has_it_left_out() -> None:
    rgb = bytes(8 * 4 * 3)
    assert said(encode_preview(rgb, 8, 4)) == {SOURCE: DRAWN}
    assert said(encode_preview(rgb, 8, 4, disclosure=Disclosure(xmp=False))) is None
    assert said(encode_preview(rgb, 8, 4, picture(bytes(16 * 32)))) == {SOURCE: COMPOSITE}


def picture(alpha: bytes, size: tuple[int, int] = (32, 16)) -> PreparedPicture:
    """A source of this size, in whose left upper part 32 × 16 pixels are drawn as far as alpha lets them be seen."""
    patch = Patch((32, 16), (0, 0, 32, 16), alpha, bytes(size[0] * size[1] * 3))
    return PreparedPicture(size, Pixels(32, 16, bytes(32 * 16 * 3), bytes(4 * 2)), patch)


ALL_SEEN, SOME_SEEN = bytes([255]) * (32 * 16), bytes([255]) * (32 * 15) + bytes([254]) * 32


@pytest.mark.parametrize(
    ("source", "type_"),
    [
        (PreparedPicture((32, 16), Pixels(32, 16, bytes(32 * 16 * 3))), DRAWN),
        (picture(ALL_SEEN), DRAWN),
        (picture(SOME_SEEN), COMPOSITE),
        (picture(ALL_SEEN, (40, 16)), COMPOSITE),
    ],
    ids=["no mask", "a mask of everything", "a mask with an edge", "a part of a larger picture"],
)
def test_a_picture_of_which_a_source_s_pixels_stay_is_said_to_be_a_composite(
    source: PreparedPicture, type_: str
) -> None:
    for metadata, more in ((True, TOLD), (False, {})):
        assert said(written("png", picture=source, metadata=metadata)) == {SOURCE: type_, **more}


@pytest.mark.parametrize("name", ["<a> & 'b' \"c\"]]>", "狐\N{FOX FACE}", "\0\x1b\udcff\ufffe end"])
def test_any_name_of_a_model_makes_xml(name: str) -> None:
    told = read(packet(DRAWN, model=name))[AI_SYSTEM]
    assert told == "".join(c if c.isprintable() and c != "\ufffe" else "\ufffd" for c in name)


def test_a_long_prompt_leaves_room_for_it_in_a_jpeg() -> None:
    assert said(written("jpeg", prompt="fox " * 20_000)) == {SOURCE: DRAWN, **TOLD}
