"""Filters of requests that begin from a picture: they see what was sent, and what would leave around what was drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from engine.errors import ModerationBlockedError
from engine.pictures.pixels import Pixels
from launcher.filters.protocol import Picture
from launcher.frontend import intake
from launcher.messages.client_messages import Generate
from launcher.pictures.prepared import Patch, PreparedPicture
from tests.launcher.fake_ranks import run
from tests.launcher.frontend.delivery.fake_gate import filtered_engine
from tests.launcher.http_servers import PROMPT

FILE = b"a picture's file"
SOURCE, DRAWN = (100, 80), (64, 48)
RED = 50  # of the source


class Reader:
    """Gives for any file a picture of which a part in the middle is drawn."""

    async def read(self, request: Generate, files: Mapping[str, bytes], *_: object) -> PreparedPicture:
        source = bytes([RED, 0, 0]) * (SOURCE[0] * SOURCE[1])
        patch = Patch(DRAWN, (10, 10, 74, 58), b"\xff" * (DRAWN[0] * DRAWN[1]), source)
        return PreparedPicture(SOURCE, Pixels(*DRAWN, bytes(DRAWN[0] * DRAWN[1] * 3)), patch)

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "PictureReader", Reader)


def sizes(pictures: list[Picture]) -> list[tuple[int, int, int]]:
    return [(picture.width, picture.height, picture.rgb[0]) for picture in pictures]


def test_filters_see_all_that_was_sent_and_what_would_leave(run_folder: Path) -> None:
    async def test() -> None:
        async with filtered_engine(run_folder) as (_, client, gate):
            result = await client.generate(PROMPT, seed=9, image=FILE, steps=4, strength=1, preview_every=1)
            assert sizes(gate.seen("upload")) == [(*SOURCE, RED), (*DRAWN, 0)]
            assert sizes(gate.seen("image")) == [(*SOURCE, RED)]
            (image,) = result.images
            assert image.tobytes() == gate.seen("image")[0].rgb
            assert image.getpixel((40, 40))[0] == 9  # type: ignore[index]
            width, height, red = sizes(gate.seen("preview"))[0]
            assert (width, height, red) == (6, 5, RED)  # a sixteenth of the answer

    run(test())


@pytest.mark.parametrize("red", [RED, 0])
def test_a_picture_that_is_blocked_reaches_no_rank_and_holds_no_memory(run_folder: Path, red: int) -> None:
    async def test() -> None:
        async with filtered_engine(run_folder, {"blocked": {red}}) as (fakes, client, _):
            with pytest.raises(ModerationBlockedError, match="picture that was sent") as blocked:
                await client.generate(PROMPT, image=FILE, steps=1)
            assert blocked.value.parameter == "image"
            assert not fakes.ranks[0].steps
            assert not [*fakes.frontend._requests._arrivals]

    run(test())


def test_a_blurred_image_keeps_nothing_of_the_picture_around_it(run_folder: Path) -> None:
    async def test() -> None:
        async with filtered_engine(run_folder, {"blurred": {RED}}) as (_, client, _):
            result = await client.generate(PROMPT, seed=9, image=FILE, steps=1)
            assert result.images[0].getcolors() == [(SOURCE[0] * SOURCE[1], (128, 128, 128))]

    run(test())
