"""`krea2 serve` with the demo checkpoint, on a free port."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.launcher.processes import PATIENCE_S, new_marked, temporary_folder

# A warm-up that is cut off, as it is after a while, leaves no previews.
PATIENT_WARM_UP = f"""
import sys
if {{"serve", "_frontend"}} & {{*sys.orig_argv}}:
    from launcher.frontend import warm_up as warmup
    warmup.LONGEST_S = {PATIENCE_S}
"""


class Server(NamedTuple):
    """Where a server listens."""

    http: str
    rpc: str


@contextmanager
def serve_demo(*options: str) -> Iterator[Server]:
    """A server with these options, once its ranks have loaded; it is stopped at the end."""
    with temporary_folder() as folder:
        marked = new_marked(Path(folder))
        marked.run_first(PATIENT_WARM_UP)
        try:
            process = marked.start_krea2("serve", "--device", "cpu", "--port", "0", *options, stderr=subprocess.DEVNULL)
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(2)]
            assert all(lines), "the server ended before it said where it listens"
            yield Server(*(line.strip().partition(": ")[2] for line in lines))
        finally:
            marked.kill()
