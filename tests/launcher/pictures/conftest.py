"""A process that reads pictures, for all tests that only have it read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from engine.config.model_config import ModelConfig
from launcher.awake import AwakeLoop
from launcher.messages.limits import Limits
from launcher.pictures.reading import PictureReader
from tests.launcher.pictures.files import Read, request


@pytest.fixture(scope="package")
def read(demo: ModelConfig) -> Iterator[Read]:
    """`read(image=…, mask=…, width=…)` reads files as the demo gets them, and takes `model` and `limits`, too."""
    with asyncio.Runner(loop_factory=AwakeLoop) as runner:
        reader = PictureReader()
        try:
            yield lambda model=demo, limits=Limits(), **wanted: runner.run(  # noqa: B008
                reader.read(*request(**wanted), model, limits)
            )
        finally:
            reader.close()
