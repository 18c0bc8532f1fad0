"""Each request of the tables is answered with a picture, or a sentence that helps."""

from __future__ import annotations

import pytest

from tests.launcher.http.clients import automatic1111_rows, chat_rows, images_rows, libraries_rows
from tests.launcher.http.clients.rows import Row

ROWS = (*images_rows.ROWS, *libraries_rows.ROWS, *automatic1111_rows.ROWS, *chat_rows.ROWS)
AWAITED = (  # words of what these do, until the server has what they ask for
    "additional parameters",
    "ending in a slash",
    "transparent WebP",
    "lists models of images",
    "with gpt-image-1",
    "all that its form offers",
    "on its page for images",
    "users draw",
)


def _is_awaited(row: Row) -> bool:
    asks = row.path.startswith("/v1/chat/")
    return asks or any(words in f"{row.client} {row.does}" for words in AWAITED)


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=[pytest.mark.xfail] if _is_awaited(row) else []) for row in ROWS],
    ids=lambda row: f"{row.client} {row.does}",
)
def test_a_client_gets_what_it_reads(url: str, row: Row) -> None:
    row.reads(row.send(url))
