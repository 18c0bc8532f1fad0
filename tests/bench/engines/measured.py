"""What the tests of the benchmarks of the whole engine share: tiny options, and a look at the output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

TINY = ("--size", "tiny", "--device", "cpu", "--layers", "2", "--prompt-tokens", "7")


def check_output(capsys: pytest.CaptureFixture[str], file: Path | None, benchmark: str) -> list[dict[str, Any]]:
    """The JSON lines, each complete in itself, the same in the file; and the table below a title that says what the
    weights are."""
    output = capsys.readouterr().out.splitlines()
    lines = [line for line in output if line.startswith("{")]
    if file is not None:
        assert file.read_text().splitlines() == lines
    title = next(line for line in output if line.startswith(f"bench.{benchmark}: "))
    assert "random weights, size tiny with other layers, 2 DiT blocks, float32 on cpu" in title
    assert len(output) == output.index(title) + 3 + len(lines)
    results = [json.loads(line) for line in lines]
    for result in results:
        assert result["benchmark"] == benchmark
        assert result["weights"] == "random"
        assert (result["size"], result["layers"], result["device"]) == ("tiny with other layers", 2, "cpu")
        assert result["gpu_shared"] is False
        assert result["hardware"]["cpu"]
        assert result["versions"]["torch"]
        assert "commit" in result
    return results
