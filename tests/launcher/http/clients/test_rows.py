"""Each request of the tables is answered with a picture, or a sentence that helps."""

from __future__ import annotations

import pytest

from tests.launcher.http.clients.tables import automatic1111, chat, images, libraries
from tests.launcher.http.clients.tables.rows import Row

ROWS = (*images.ROWS, *libraries.ROWS, *automatic1111.ROWS, *chat.ROWS)
AWAITED = (  # words of what these do, until the server has what they ask for
    "additional parameters",
    "transparent WebP",
    "all that its form offers",
    "on its page for images",
    "users draw",
)


def _is_awaited(row: Row) -> bool:
    return any(words in f"{row.client} {row.does}" for words in AWAITED)


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=[pytest.mark.xfail] if _is_awaited(row) else []) for row in ROWS],
    ids=lambda row: f"{row.client} {row.does}",
)
def test_a_client_gets_what_it_reads(url: str, row: Row) -> None:
    row.reads(row.send(url))
