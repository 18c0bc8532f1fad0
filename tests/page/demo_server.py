"""`krea2 serve` with the demo checkpoint, on a free port."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE_S = 120.0  # for ranks to start where other processes want the cores too


@contextmanager
def serve_demo() -> Iterator[str]:
    """The server's address, once it is ready; it is stopped at the end."""
    command = [sys.executable, "-m", "launcher", "serve", "--model", "demo", "--device", "cpu", "--port", "0"]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while not (line := lines.get(timeout=PATIENCE_S)).startswith("http: "):
            assert line, "the server ended before it said where it listens"
        yield line.removeprefix("http: ").strip()
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        finally:
            process.kill()
            process.wait()
            reader.join(PATIENCE_S)
