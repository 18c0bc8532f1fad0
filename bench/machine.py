"""Whether this machine can run what bench/gpu.sh runs, and what it is.

    python -m bench.machine [--no-gpu]

Prints the JSON line of circumstances that every result carries. Ends with 2 if something is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from engine.kernels.jit import missing_for_kernels

NEEDED = {"torch": (2, 11), "triton": (3, 6), "safetensors": (0, 5)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.machine", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--no-gpu", action="store_true", help="a CPU will do")
    options = parser.parse_args(arguments)
    missing = [problem for name, least in NEEDED.items() if (problem := _problem(name, least)) is not None]
    if not missing:
        import torch

        if not options.no_gpu and not torch.cuda.is_available():
            missing.append("torch finds no CUDA device (bench/gpu.sh --small does with a CPU)")
        if not options.no_gpu and (lacking := missing_for_kernels()) is not None:
            missing.append(f"{lacking} is needed")
    for problem in missing:
        print(f"error: {problem}", file=sys.stderr)
    if missing:
        return 2
    from bench.measure.output import print_json

    print_json("machine", {})
    return 0


def _problem(name: str, least: tuple[int, int]) -> str | None:
    needs = f"{name} >= {least[0]}.{least[1]} is needed"
    try:
        found = version(name)
    except PackageNotFoundError:
        return f"{needs}, and not installed for {sys.executable} (PYTHON=… names another)"
    numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:2])
    return None if numbers >= least else f"{needs}, found {found}"


if __name__ == "__main__":
    sys.exit(main())
