"""Runs a benchmark to its end, whatever its process dies of: what is left then runs in a new one.

    python -m bench.survive bench.step [WORD…]

A crash ends a process, and so does a benchmark itself once its GPU is lost (`bench.measure.lost`). It has written down
by then what it began (`Attempts`), and the next process leaves that out, the last of which was its death. So every
process begins something new, or none follows. `--seconds` counts for all of them together. Ends with 1 if there was
more than one, else as the benchmark does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from bench.measure.lost import LOST
from bench.measure.writing import append_line

_FILE = "KREA2_BENCH_ATTEMPTS"
_BEGUN, _DIED = "begun ", "died of "
_INTERRUPTED = 130
_LAST_WORDS_S = 1.0
_LOOK_S = 0.25  # at most, between looks for a signal: one that comes just before a wait does not interrupt it
_STOPS = (signal.SIGTERM, signal.SIGINT)


class Attempts:
    """What a benchmark has begun, in this process and in the ones that died before it. Each is named by one line."""

    def __init__(self) -> None:
        """Of this process, which `bench.survive` may have started; if not, nothing is kept."""
        file = os.environ.get(_FILE)
        self._file = Path(file) if file else None
        lines = _lines(self._file) if self._file else []
        self._begun = {line.removeprefix(_BEGUN) for line in lines if line.startswith(_BEGUN)}
        self._deadly = {line.removeprefix(_DIED) for line in lines if line.startswith(_DIED)}

    @property
    def resumed(self) -> bool:
        """Whether this process goes on where another died."""
        return bool(self._deadly)

    def is_new(self, what: str) -> bool:
        """Whether no earlier process began this."""
        return what not in self._begun

    def begin(self, what: str) -> bool:
        """Write down that this begins now. False if it began in an earlier process: it is to be left out."""
        return self.is_new(what) and self.prepare(what)

    def prepare(self, what: str) -> bool:
        """As `begin`, of what later things need, and each process does: False only if an earlier one died of it."""
        if what in self._deadly:
            return False
        if self._file is not None:
            append_line(self._file, f"{_BEGUN}{what}")
        return True


def main(words: Sequence[str]) -> int:
    if not words:
        print((__doc__ or "").split("\n\n")[1].strip(), file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="krea2-bench-") as folder:
        return _Benchmark(words, Path(folder) / "attempts").run()


class _Benchmark:
    """One benchmark's processes, one after the other."""

    def __init__(self, words: Sequence[str], attempts: Path) -> None:
        self._words, self._attempts = list(words), attempts
        self._began = time.monotonic()
        self._seconds = self._find_seconds()
        self._stopped = False
        self._untold: list[int] = []  # signals that have not been handed on

    def run(self) -> int:
        for number in _STOPS:
            signal.signal(number, self._stop)
        died = False
        while True:
            known = len(_lines(self._attempts))
            status = self._run_once()
            if self._stopped:
                return _INTERRUPTED
            if status >= 0 and status != LOST:
                return 1 if died else status
            died = True
            how = "lost its GPU" if status == LOST else f"was ended by {signal_name(-status)}"
            lines = _lines(self._attempts)
            if len(lines) == known or f"{_DIED}{lines[-1].removeprefix(_BEGUN)}" in lines:
                _note(f"FAILED: {self._words[0]} {how}, and has said of nothing new that it began")
                return 1
            what = lines[-1].removeprefix(_BEGUN)
            append_line(self._attempts, f"{_DIED}{what}")
            left = self._left()
            if left is not None and left <= 0:
                _note(f"FAILED: {self._words[0]} {how} at: {what}. The time is up.")
                return 1
            _note(f"FAILED: {self._words[0]} {how} at: {what}. What is left runs in a new process.")

    def _run_once(self) -> int:
        words, left = list(self._words), self._left()
        if left is not None and self._seconds is not None:
            words[self._seconds] = str(max(0, int(left)))
        process = subprocess.Popen(
            [sys.executable, "-m", *words], env={**os.environ, _FILE: str(self._attempts), "PYTHONFAULTHANDLER": "1"}
        )
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(_LOOK_S)
            while self._untold:
                self._hand_on(process, self._untold.pop(0))

    def _stop(self, number: int, _: FrameType | None) -> None:
        self._stopped = True
        self._untold.append(number)  # perhaps while a process is being started

    def _hand_on(self, process: subprocess.Popen[bytes], number: int) -> None:
        """Whoever stops this stops the benchmark too, most often itself: the signal goes to all of a terminal's or of
        `timeout`'s processes, and a second would cut short what the benchmark still has to say."""
        timer = threading.Timer(_LAST_WORDS_S, process.send_signal, (number,))
        timer.daemon = True
        timer.start()

    def _find_seconds(self) -> int | None:
        """Where in the words the value of --seconds is."""
        index = self._words.index("--seconds") + 1 if "--seconds" in self._words else 0
        return index if 0 < index < len(self._words) and self._words[index].isdecimal() else None

    def _left(self) -> float | None:
        if self._seconds is None:
            return None
        return float(self._words[self._seconds]) - (time.monotonic() - self._began)


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
