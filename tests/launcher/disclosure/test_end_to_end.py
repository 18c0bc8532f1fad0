"""What clients get of what an operator has files say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.client.async_client import AsyncClient
from launcher.client.results import ImageFile, PreviewFile
from launcher.disclosure.xmp import DRAWN
from launcher.messages.configs import DisclosureConfig
from tests.launcher.disclosure.test_xmp import SOURCE, said
from tests.launcher.fake_ranks import fake_engine, run


@pytest.mark.parametrize("xmp", [True, False])
def test_previews_and_images_say_what_the_operator_wants(run_folder: Path, xmp: bool) -> None:
    async def test() -> None:
        config: dict[str, Any] = {"disclosure": DisclosureConfig(xmp=xmp)}
        async with fake_engine(run_folder, **config) as fakes, AsyncClient(fakes.address) as client:
            asked: Any = {"steps": 8, "preview_every": 1, "metadata": False}
            files = [e async for e in client.stream("a fox", **asked) if isinstance(e, PreviewFile | ImageFile)]
            assert {type(file) for file in files} == {PreviewFile, ImageFile}
            for file in files:
                assert said(file.file) == ({SOURCE: DRAWN} if xmp else None)

    run(test())
