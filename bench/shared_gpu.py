"""Parity of several ranks, also where they share one GPU (or the CPU): their final latents against those of one rank.

    python -m bench.shared_gpu [--modes tp2,sp2,cfg,tp4,sp4,tp2xsp2] [--device auto|cuda|cpu] [--seconds N] [--json F]

Where there is a GPU for each rank they talk over NCCL. It refuses two ranks on one GPU: with fewer they talk over gloo,
staged through the host: slow, and the same arithmetic. The model is small and random, and half of the images are
guided. Every rank is a process of its own, as in a server. In float32 the latents must be those of one rank; in
bfloat16 and fp8, whose sums are rounded in another order, they may be no further from one rank's in float32 than one
rank in the same precision is, times `LOW_PRECISION_FACTOR`. All ranks must end with the same latents. Results come mode
by mode, and a mode that fails does not keep the next from running. Ends with 1 if one of these does not hold, or if a
process fails or is not done in time.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bench.engines.denoising import final_latents
from bench.engines.rank_processes import ProcessFailed, end_with_parent, run_ranks
from bench.engines.real_size import TINY, RandomWeights, random_prompt
from bench.measure.arguments import duration, end_with, json_file, modes
from bench.measure.output import print_table, publish
from engine.config.degrees import Degrees
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.device.devices import pick_device
from engine.errors import ArgumentError
from engine.parallel.distributed import connect_mesh
from engine.rank.rank import Rank
from engine.step import Job

FLOAT32_TOLERANCE = 1e-4  # max|a − b| / max(1, max|b|), as in the design
LOW_PRECISION_FACTOR = 1.3  # of the mean error
RANK_TOLERANCE = 1e-6  # between the ranks of a group
PRECISIONS = {"float32": ("float32", "none"), "bfloat16": ("bfloat16", "none"), "fp8": ("bfloat16", "fp8")}
IMAGES = 8
STEPS = 4
MODES = "tp2,sp2,cfg,tp4,sp4,tp2xsp2"
ONE = Degrees()
DEFAULT_SECONDS = 120.0
BACKEND = "backend"  # the file with what ranks talk over


@dataclass(frozen=True)
class Parity:
    """How the ranks of a mode do in one precision. `error` and `allowed` are what its tolerance is stated in. backend:
    what they talk over; none for one rank."""

    mode: str
    ranks: int
    device: str
    backend: str
    precision: str
    error: float
    allowed: float
    between_ranks: float

    @property
    def holds(self) -> bool:
        return self.error <= self.allowed and self.between_ranks <= RANK_TOLERANCE


@dataclass(frozen=True)
class ModeFailed:
    """A mode whose ranks did not all come to an end, and what they said."""

    mode: str
    cause: str

    def __str__(self) -> str:
        return f"{self.mode}: {self.cause}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.shared_gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--modes", default=MODES, type=modes, help=f"comma-separated, as tp2xsp2 or sp2xcfg ({MODES})")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--seconds", type=duration, default=DEFAULT_SECONDS, help="in all, after which it is a failure")
    parser.add_argument("--json", type=json_file, metavar="FILE", help="append the JSON lines to it")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)  # a process of the group
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.rank is not None:
        end_with_parent()
        run_rank(options.rank, options.modes[0], options.device, options.folder, options.seconds)
        return 0
    results, failures = [], []
    try:
        for result in compare(options.modes, options.device, options.seconds):
            if isinstance(result, Parity):
                publish("shared_gpu", {**asdict(result), "holds": result.holds}, options.json)
                results.append(result)
            else:
                print(f"FAILED: {result}", file=sys.stderr, flush=True)
                failures.append(result.mode)
    except (ArgumentError, ProcessFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_table(
        ("mode", "device", "over", "precision", "error", "allowed", "between ranks", ""),
        [
            (
                result.mode,
                result.device,
                result.backend,
                result.precision,
                f"{result.error:.1e}",
                f"{result.allowed:.1e}",
                f"{result.between_ranks:.1e}",
                "ok" if result.holds else "FAILED",
            )
            for result in results
        ],
    )
    if failures:
        print(f"FAILED, see above: {', '.join(failures)}")
    return 0 if results and not failures and all(result.holds for result in results) else 1


def compare(modes: Sequence[Degrees], device: str, seconds: float) -> Iterator[Parity | ModeFailed]:
    """Run one rank and then each mode, which gives one `Parity` a precision, or one failure. Raises `ProcessFailed` if
    one rank fails, with which the others would be compared."""
    words = ["--device", device]
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="krea2-shared-") as name:
        folder = Path(name)
        (alone,) = _run_group(ONE, words, folder / ONE.name, deadline)
        waiting = list(dict.fromkeys(modes))
        while waiting:
            left = deadline - time.monotonic()
            due = time.monotonic() + 2 * left / (1 + len(waiting))  # so that one that hangs leaves time for the others
            mode = waiting.pop(0)
            if mode == ONE:
                runs = [alone]
            else:
                try:
                    runs = _run_group(mode, words, folder / mode.name, due)
                except ProcessFailed as error:
                    yield ModeFailed(mode.name, str(error))
                    continue
            backend = (folder / mode.name / BACKEND).read_text()
            yield from _parities(mode, runs, alone, device, backend)


def _parities(
    mode: Degrees, runs: Sequence[dict[str, torch.Tensor]], one: dict[str, torch.Tensor], device: str, backend: str
) -> Iterator[Parity]:
    """Of each precision, for a mode's latents by rank and those of one rank."""
    kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    exact = one["float32"].double()
    for precision in PRECISIONS:
        ours, alone = runs[0][precision].double(), one[precision].double()
        if precision == "float32":
            error = _largest((ours - exact).abs()) / max(1.0, exact.abs().max().item())
            allowed = FLOAT32_TOLERANCE
        else:
            error = (ours - exact).abs().mean().nan_to_num(float("inf")).item()
            allowed = LOW_PRECISION_FACTOR * (alone - exact).abs().mean().item()
        between = max(_largest((other[precision].double() - ours).abs()) for other in runs)
        yield Parity(mode.name, mode.ranks, kind, backend, precision, error, allowed, between)


def run_rank(rank: int, mode: Degrees, device_name: str, folder: Path, timeout_s: float) -> None:
    """One process of a group: in each precision make the images and write their final latents to `folder`."""
    latents: dict[str, torch.Tensor] = {}
    parallel: dict[str, Any] = {"tp": mode.tp, "sp": mode.sp, "cfg_parallel": mode.cfg > 1}
    config = EngineConfig(device=device_name, share_gpu=True, **parallel)
    device = pick_device(config, rank, mode.ranks)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // mode.ranks))
    store = folder / "store"
    mesh = connect_mesh(
        rank,
        mode,
        device,
        store_file=store,
        timeout_s=timeout_s,
        share_gpu=True,
    )
    if rank == 0:
        (folder / BACKEND).write_text(torch.distributed.get_backend() if mode.ranks > 1 else "none")
    for precision, (dtype, quantization) in PRECISIONS.items():
        config = EngineConfig(
            **parallel,
            device=device_name,
            dtype=dtype,
            quantization=quantization,
            attention="torch",  # whatever the number of ranks
            share_gpu=True,
            cuda_graphs=False,  # gloo's collectives pass through the host, which no graph records
        )
        engine = Rank(config, mesh, device, weights=RandomWeights(TINY, device))
        latents[precision] = torch.cat(final_latents(engine, _jobs(TINY)))
        engine.close()
    save_file(latents, folder / f"rank{rank}.safetensors")
    mesh.close()


def _jobs(model: ModelConfig) -> list[Job]:
    """Images of two sizes, every other pair guided."""
    return [
        Job(
            job_id=image,
            prompt_ids=random_prompt(model, seed=image, tokens=8 + image),
            negative_ids=random_prompt(model, seed=IMAGES + image, tokens=3) if image % 4 > 1 else None,
            width=model.size_multiple * (4 + 2 * (image % 2)),
            height=model.size_multiple * 4,
            steps=STEPS,
            guidance=1.5 if image % 4 > 1 else 0.0,
            mu=0.0,  # timesteps that bfloat16 holds exactly, or their rounding would be most of the error
            seed=image,
        )
        for image in range(IMAGES)
    ]


def _run_group(degrees: Degrees, words: Sequence[str], folder: Path, deadline: float) -> list[dict[str, torch.Tensor]]:
    """Each rank's latents by precision."""
    run_ranks("bench.shared_gpu", ["--modes", degrees.name, *words], degrees.ranks, folder, deadline)
    return [load_file(folder / f"rank{rank}.safetensors") for rank in range(degrees.ranks)]


def _largest(errors: torch.Tensor) -> float:
    """The largest of them; NaN counts as infinite."""
    return errors.nan_to_num(float("inf")).max().item()


if __name__ == "__main__":
    end_with(main)
