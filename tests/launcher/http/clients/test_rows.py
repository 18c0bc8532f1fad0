"""Each request of the tables is answered with a picture, or a sentence that helps."""

from __future__ import annotations

import pytest

from tests.launcher.http.clients.tables import automatic1111, chat, images, libraries
from tests.launcher.http.clients.tables.rows import Row

ROWS = (*images.ROWS, *libraries.ROWS, *automatic1111.ROWS, *chat.ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.client} {row.does}")
def test_a_client_gets_what_it_reads(url: str, row: Row) -> None:
    row.reads(row.send(url))
