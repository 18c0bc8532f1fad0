"""`krea2 serve` with filters, whose processes are counted."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL

from tests.launcher.demo_server import PATIENT_WARM_UP, Server
from tests.launcher.processes import PATIENCE_S, Marked, new_marked, temporary_folder


@contextmanager
def served(filters: Sequence[str], *options: str, hollow: bool = False) -> Iterator[tuple[Server, Marked]]:
    """A server, and its processes, of which none may be left when it is stopped. hollow: its ranks compute nothing."""
    with temporary_folder() as folder:
        marked = new_marked(Path(folder))
        if hollow:
            marked.use_hollow_ranks()
        else:
            marked.run_first(PATIENT_WARM_UP)
        with_filters = [word for each in filters for word in ("--filter", each)]
        command = ("serve", "--device", "cpu", "--port", "0", "--step-timeout", f"{PATIENCE_S:g}")
        try:
            process = marked.start_krea2(*command, *with_filters, *options, stderr=DEVNULL)
            assert process.stdout is not None
            http, rpc = (process.stdout.readline().strip().partition(": ")[2] for _ in range(2))
            assert len(marked.alive("_filter")) == len(filters)
            yield Server(http, rpc), marked
            process.send_signal(signal.SIGINT)
            marked.expect_nothing_left()
        finally:
            marked.kill()
