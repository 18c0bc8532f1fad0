from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fake_cuda import FakeCuda


@pytest.fixture
def device() -> Iterator[FakeCuda]:
    with FakeCuda() as fake:
        yield fake
