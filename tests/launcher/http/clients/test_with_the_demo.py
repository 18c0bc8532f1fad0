"""The same requests to `krea2 serve` as docs/clients.md starts it, which draws with the demo.

`test_rows` is the fast run of this.
"""

from __future__ import annotations

import re
import shlex

import pytest

from tests.launcher.demo_server import serve_demo
from tests.launcher.http.clients.test_document import DOCUMENT
from tests.launcher.http.clients.test_rows import ROWS


@pytest.mark.slow
def test_every_client_gets_what_it_reads_from_the_command_of_the_document() -> None:
    (command,) = re.findall(r"^    krea2 serve --model \S+ (.*)$", DOCUMENT, re.MULTILINE)
    with serve_demo(*shlex.split(command)) as server:
        for row in ROWS:
            if row.does != "lists models of images":  # of which this has another list
                row.reads(row.send(server.http))
