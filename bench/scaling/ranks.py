"""All ranks of a mode for real, a process each."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

import torch

from bench.engines.rank_processes import run_ranks
from bench.engines.setup import Setup, Version
from bench.measure.output import note
from bench.scaling.steps import Timed, time_steps
from engine.config.degrees import Degrees
from engine.config.engine_config import EngineConfig
from engine.device.devices import pick_device
from engine.parallel.distributed import connect_mesh

_GROUP_S = 300.0  # for the processes of one mode


def measure_ranks(arguments: argparse.Namespace, setup: Setup, version: Version, degrees: Degrees) -> dict[int, Timed]:
    """By side the slowest rank's steps, and what rank 0 sends. Empty, with a note, where GPUs are missing. Raises
    `ProcessFailed`."""
    if setup.device.type == "cuda" and torch.cuda.device_count() < degrees.ranks:
        note(f"{degrees.name} is not measured: there are {torch.cuda.device_count()} GPUs")
        return {}
    words = ["--modes", degrees.name, "--size", arguments.size, "--quantization", version.quantization]
    words += ["--attention", version.attention]
    for name in ("layers", "sides", "device", "dtype", "prompt_tokens"):
        value = getattr(arguments, name)
        words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    words += ["--guided"] if arguments.guided else []
    with tempfile.TemporaryDirectory(prefix="krea2-scaling-") as name:
        folder = Path(name) / "ranks"
        run_ranks("bench.scaling", words, degrees.ranks, folder, time.monotonic() + _GROUP_S)
        ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(degrees.ranks)]
    return {int(side): Timed(max(rank[side][0] for rank in ranks), *ranks[0][side][1:]) for side in ranks[0]}


def run_rank(arguments: argparse.Namespace, setup: Setup, degrees: Degrees, sides: Sequence[int]) -> None:
    """One process of a mode."""
    rank = arguments.rank
    device = pick_device(EngineConfig(device=setup.device.type), rank, degrees.ranks)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // degrees.ranks))
    mesh = connect_mesh(
        rank,
        degrees,
        device,
        store_file=arguments.folder / "store",
        timeout_s=_GROUP_S,
    )
    timed = time_steps(setup, setup.versions[0], degrees, mesh, device, sides, arguments.guided)
    found = {side: astuple(each) for side, each in timed.items()}
    (arguments.folder / f"rank{rank}.json").write_text(json.dumps(found))
    mesh.close()
