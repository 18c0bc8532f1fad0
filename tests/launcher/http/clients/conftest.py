"""One server for all rows, in front of fake ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher.http_servers import in_a_thread
from tests.launcher.processes import temporary_folder

NAMES = ("krea-2-turbo", "dall-e-3", "gpt-image-1")


@pytest.fixture(scope="package")
def url() -> Iterator[str]:
    """Of a server under the names that clients expect, which takes any other as well."""
    with temporary_folder() as folder, in_a_thread(Path(folder), model_names=NAMES, any_model=True) as url:
        yield url
