"""What every result must say: on which machine, with which versions, at which commit."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import engine
from bench.measure.writing import append_line


def print_json(benchmark: str, result: Mapping[str, Any]) -> None:
    """One line, complete in itself."""
    print(json_line(benchmark, result), flush=True)


def json_line(benchmark: str, result: Mapping[str, Any]) -> str:
    """What `print_json` prints."""
    return json.dumps({"benchmark": benchmark, **result, **_circumstances()})


def append_json(path: Path, benchmark: str, result: Mapping[str, Any]) -> bool:
    """Add the line to a file at once: what was measured outlives the process. See `append_line`."""
    return append_line(path, json_line(benchmark, result))


def publish(benchmark: str, result: Mapping[str, Any], file: Path | None) -> None:
    """The line goes to the end of the file, or to stdout where there is none or it cannot be written."""
    if file is None or not append_json(file, benchmark, result):
        print_json(benchmark, result)


def publish_left_out(what: Sequence[str], of: int, file: Path | None) -> None:
    """Say which of `of` measurements there was no time for, if any."""
    if what:
        publish("left_out", {"what": list(what), "of": of}, file)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need to be, numbers to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, ["-" * width for width in widths], *rows):
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def note(text: str) -> None:
    """To whoever watches."""
    print(text, file=sys.stderr, flush=True)


@lru_cache(maxsize=1)
def _circumstances() -> dict[str, Any]:
    has_gpu = torch.cuda.is_available()
    return {
        "hardware": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if has_gpu else None,
            "gpus": torch.cuda.device_count() if has_gpu else 0,
        },
        "versions": {
            "python": platform.python_version(),
            "engine": engine.__version__,
            **{name: _version(name) for name in ("torch", "triton", "diffusers", "transformers")},
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if has_gpu else None,
            "driver": _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
            if has_gpu
            else None,
        },
        "commit": _commit(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """What KREA2_COMMIT says, of a tree that has been copied; else the checkout's commit, with `-dirty` when something
    is not committed."""
    named = os.environ.get("KREA2_COMMIT")
    return named or _output_of("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _output_of(*command: str) -> str | None:
    try:
        result = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
