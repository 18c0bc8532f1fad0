"""What a benchmark of the whole engine has measured so far: lines as they come, and a table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.engines.setup import Setup
from bench.measure.lost import LOST, DeviceLost
from bench.measure.output import append_json, note, print_json, print_table
from bench.measure.timing import is_shared
from bench.survive import Attempts


class Results:
    """Writes every result as it comes: a JSON line to stdout and, if asked to, to a file; at the end one table."""

    def __init__(self, benchmark: str, setup: Setup, columns: Sequence[str]) -> None:
        self._benchmark, self._setup, self._columns = benchmark, setup, columns
        self._rows: list[Sequence[str]] = []
        self._failures: list[str] = []
        self._lost = False
        self.attempts = Attempts()

    @property
    def any(self) -> bool:
        """Whether there is a result yet."""
        return bool(self._rows)

    @property
    def status(self) -> int:
        """The exit status: 0 if there is one and nothing failed, `LOST` if the GPU is lost."""
        if self._lost:
            return LOST
        return 0 if (self.any or self.attempts.resumed) and not self._failures else 1

    def fail(self, what: str, why: str) -> None:
        """Tell whoever watches at once, and again below the table."""
        note(f"FAILED: {what}: {why}")
        self._failures.append(what)

    def lose_device(self, error: DeviceLost) -> None:
        """Nothing will be added any more."""
        self._lost = True
        self._failures.append(f"the GPU is lost, and whatever it would compute in this process: {error}")

    def add(self, result: Any, row: Sequence[str]) -> None:
        """result: a dataclass with the GPU's state before and after; row: what the table shows of it."""
        setup = self._setup
        shared = is_shared(result.gpu_before, result.gpu_after)
        if shared:
            note("not valid: another process uses the GPU")
        line = {
            "weights": "random",
            "size": setup.size,
            "layers": setup.model.transformer.num_layers,
            "device": setup.device.type,
            "dtype": str(setup.dtype).removeprefix("torch."),
            "prompt_tokens": setup.prompt_tokens,
            "gpu_shared": shared,
            **asdict(result),
        }
        print_json(self._benchmark, line)
        if setup.json is not None:
            append_json(setup.json, self._benchmark, line)
        self._rows.append(row)

    def print_table(self) -> None:
        """With a title that says what the weights are."""
        print(f"\nbench.{self._benchmark}: {self._setup.title}")
        print_table(self._columns, self._rows)
        for what in self._failures:
            note(f"FAILED: {what}")
        if not self.any and not self.attempts.resumed:
            note("FAILED: nothing was measured")
