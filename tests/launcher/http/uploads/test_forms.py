"""Forms with files: what programs send is read, within limits, and what is no form is told so in a sentence."""

from __future__ import annotations

import random
from typing import Any

import httpx
import pytest

from engine.errors import ArgumentError
from launcher.http.uploads.forms import LONGEST_HEADER, MOST_HEADERS, MOST_PARTS, FormLimits, read_form

LIMITS = FormLimits(text=100, file=1000, written=2000, pictures=frozenset({"image"}))
TYPE = "multipart/form-data; boundary=B"
PNG = b"\x89PNG\r\n\x1a\n--B\r\r\n--"  # with what looks like an end, but for what follows it


def part(*headers: str, content: bytes = b"x") -> bytes:
    return "\r\n".join((*headers, "", "")).encode() + content


def named(name: str, content: bytes = b"x", more: str = "", *headers: str) -> bytes:
    return part(f'Content-Disposition: form-data; name="{name}"{more}', *headers, content=content)


def body(*parts: bytes, end: bytes = b"--B--\r\n") -> bytes:
    return b"".join(b"--B\r\n%b\r\n" % each for each in parts) + end


def read(*parts: bytes, content_type: str = TYPE) -> dict[str, Any]:
    return read_form(body(*parts), content_type, LIMITS)


def test_what_httpx_and_with_it_openais_package_sends() -> None:
    files: Any = [
        ("image[]", ("a.png", PNG, "image/png")),
        ("image[]", ("ö ☺.png", b"b", "image/png")),
        ("mask", ("upload", b"c")),
    ]
    data = {"prompt": "ein Fuchs ☺\r\nim Schnee", "n": "2", "outpaint[left]": "8", "loras[][name]": ["a", "b"]}
    request = httpx.Request("POST", "http://a", data=data, files=files)
    assert read_form(request.read(), request.headers["Content-Type"], LIMITS) == {
        "prompt": data["prompt"],
        "n": "2",
        "outpaint": {"left": "8"},
        "image": [PNG, b"b"],
        "mask": b"c",
        "loras": [{"name": "a"}, {"name": "b"}],
    }


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (named("a", b""), {"a": ""}),
        (named("a", more="; filename=a.png"), {"a": b"x"}),
        (named("a", more="; filename*=UTF-8''a.png"), {"a": b"x"}),
        (named("a", b"x", "", "Content-Type: image/webp"), {"a": b"x"}),
        (named("a", b"", '; filename=""', "Content-Type: application/octet-stream"), {}),
        (named("a", "ü".encode("latin-1"), "", "Content-Type: text/plain; charset=ISO-8859-1"), {"a": "ü"}),
        (named("a", "ü".encode(), "", 'content-type: text/plain;charset="UTF-8"'), {"a": "ü"}),
        (named("a", b"{}", "", "Content-Type: application/json"), {"a": "{}"}),
        (named("a", b"x", "", "Content-Transfer-Encoding: 8BIT", "Content-Length: 1"), {"a": "x"}),
        (part("Content-Disposition: form-data; name=a"), {"a": "x"}),
        (named("prompt_ü"), {"prompt_ü": "x"}),
        (named("image", b"x" * 2000), {"image": "x" * 2000}),
        (named("image", b"x" * 1000, "; filename=a"), {"image": b"x" * 1000}),
    ],
)
def test_a_part_as_one_program_or_another_writes_it(sent: bytes, told: dict[str, Any]) -> None:
    assert read(sent) == told


def test_line_ends_before_and_text_after_a_form_are_passed_over() -> None:
    assert read_form(b"\r\n\r\n" + body(named("a")) + b"epilogue", TYPE, LIMITS) == {"a": "x"}
    assert read_form(b"--B--\r\n", TYPE, LIMITS) == {}
    assert read(named("a"), content_type='Multipart/Form-Data; charset=utf-8; Boundary="B"') == {"a": "x"}


WHOLE = body(named("a"))
MANY = tuple(f"X-{index}: y" for index in range(MOST_HEADERS))


@pytest.mark.parametrize(
    ("sent", "content_type", "message"),
    [
        (WHOLE, "multipart/form-data", "Content-Type multipart/form-data names no boundary: leave this header to"),
        (WHOLE, "multipart/form-data; boundary=", "Content-Type multipart/form-data names no boundary"),
        (
            WHOLE,
            f"multipart/form-data; boundary={'B' * 71}",
            "a form's boundary must have at most 70 characters, got 71",
        ),
        (WHOLE, "multipart/form-data; boundary=C", "the form cannot be read: it does not begin with the boundary"),
        (b'{"prompt": "x"}', TYPE, "the form cannot be read: it does not begin with the boundary"),
        (b"", TYPE, "the form has no end"),
        (WHOLE[:-4], TYPE, "the form has no end: it was cut off"),
        (WHOLE[:30], TYPE, "the form has no end: it was cut off"),
        (body(part("Content-Type: image/png")), TYPE, "each part of a form must have a header Content-Disposition"),
        (body(part('Content-Disposition: attachment; name="a"')), TYPE, "each part of a form must have a header"),
        (body(part("Content-Disposition: form-data")), TYPE, "each part of a form must have a header"),
        (body(named("")), TYPE, "each part of a form must have a header"),
        (body(part("a b: c")), TYPE, "the form cannot be read: Found invalid character"),
        (body(named("a", b"x", "", *MANY)), TYPE, "the form cannot be read: a part may have at most 8 headers of 1024"),
        (body(named("a" * LONGEST_HEADER)), TYPE, "the form cannot be read: a part may have at most 8 headers of 1024"),
        (body(*[named("a")] * (MOST_PARTS + 1)), TYPE, "a form may have at most 256 fields and files"),
        (body(named("a", b"\xff")), TYPE, "a is not valid UTF-8"),
        (
            body(named("a", b"x", "", "Content-Type: text/plain; charset=utf-16")),
            TYPE,
            "a must be in UTF-8, got charset",
        ),
        (
            body(named("a", b"x", "", "Content-Transfer-Encoding: base64")),
            TYPE,
            "a must be sent as it is, got Content-",
        ),
        (body(named("image[]", b"", "; filename=a.png")), TYPE, "image[] is an empty file, or one that had been read"),
        (body(named("a", b"x" * 101)), TYPE, "a must be at most 100 bytes, got 101"),
        (body(named("image[0]", b"x" * 2001)), TYPE, "image[0] must be at most 2000 bytes, got 2001"),
        (body(named("image", b"x" * 1001, "; filename=a")), TYPE, "image must be at most 1000 bytes, got 1001"),
    ],
)
def test_what_is_no_form_or_too_large_is_told_so_and_not_logged(
    sent: bytes, content_type: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ArgumentError) as caught:
        read_form(sent, content_type, LIMITS)
    assert caught.value.message.startswith(message)
    assert len(caught.value.message) < 200
    assert not caplog.records


def test_damaged_forms_are_read_or_refused_and_nothing_else() -> None:
    chance = random.Random(0)
    whole = body(named("prompt", b"a fox"), named("image", PNG, "; filename=a.png", "Content-Type: image/png"))
    for _ in range(500):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            where = chance.randrange(len(damaged))
            damaged[where : where + chance.randint(0, 9)] = chance.choice(
                (b"", b"\r\n", b"--B", b"\0", b'"', b"\xff", b";")
            )
        try:
            told = read_form(bytes(damaged), TYPE, LIMITS)
        except ArgumentError:
            continue
        assert all(isinstance(value, str | bytes | list | dict) for value in told.values())
