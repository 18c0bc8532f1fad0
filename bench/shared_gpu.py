"""Parity of several ranks that share one GPU (or the CPU): their final latents against those of one rank.

    python -m bench.shared_gpu [--ranks 2,4] [--device auto|cuda|cpu] [--seconds N] [--json FILE]

NCCL refuses two ranks on one GPU, so they talk through gloo, staged through the host: slow, and the same arithmetic.
The model is small and random. Every rank is a process of its own, as in a server. In float32 the latents must be those
of one rank; in bfloat16 and fp8, whose sums are rounded in another order, they may be no further from one rank's in
float32 than one rank in the same precision is, times `LOW_PRECISION_FACTOR`. All ranks must end with the same latents.
Ends with 1 if one of these does not hold, or if a process fails or is not done in time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from bench.arguments import duration, end_with, json_file
from bench.denoising import final_latents
from bench.output import print_table, publish
from bench.real_size import TINY, RandomWeights, random_prompt
from engine.config import TENSOR_PARALLEL_DEGREES, EngineConfig, ModelConfig
from engine.errors import ArgumentError
from engine.parallel import Degrees, connect_mesh, pick_device
from engine.rank import Rank
from engine.step import Job

FLOAT32_TOLERANCE = 1e-4  # max|a − b| / max(1, max|b|), as in the design
LOW_PRECISION_FACTOR = 1.3  # of the mean error
RANK_TOLERANCE = 1e-6  # between the ranks of a group
PRECISIONS = {"float32": ("float32", "none"), "bfloat16": ("bfloat16", "none"), "fp8": ("bfloat16", "fp8")}
IMAGES = 8
STEPS = 4
DEFAULT_SECONDS = 120.0


@dataclass(frozen=True)
class Parity:
    """How `ranks` ranks do in one precision. `error` and `allowed` are what the precision's tolerance is stated in."""

    ranks: int
    device: str
    precision: str
    error: float
    allowed: float
    between_ranks: float

    @property
    def holds(self) -> bool:
        return self.error <= self.allowed and self.between_ranks <= RANK_TOLERANCE


class ProcessFailed(Exception):
    """A rank's process failed or was not done in time."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.shared_gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ranks", default="2,4", type=_degrees, help="how many ranks, comma-separated")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--seconds", type=duration, default=DEFAULT_SECONDS, help="in all, after which it is a failure")
    parser.add_argument("--json", type=json_file, metavar="FILE", help="append the JSON lines to it")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)  # a process of the group
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.rank is not None:
        _end_with_parent()
        run_rank(options.rank, options.ranks[0], options.device, options.folder, options.seconds)
        return 0
    try:
        results = compare(options.ranks, options.device, options.seconds)
    except (ArgumentError, ProcessFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_table(
        ("ranks", "device", "precision", "error", "allowed", "between ranks", ""),
        [
            (
                str(result.ranks),
                result.device,
                result.precision,
                f"{result.error:.1e}",
                f"{result.allowed:.1e}",
                f"{result.between_ranks:.1e}",
                "ok" if result.holds else "FAILED",
            )
            for result in results
        ],
    )
    for result in results:
        publish("shared_gpu", {**asdict(result), "holds": result.holds}, options.json)
    return 0 if all(result.holds for result in results) else 1


def compare(degrees: Sequence[int], device: str, seconds: float) -> list[Parity]:
    """Run one rank and then each number of ranks. Raises `ProcessFailed`."""
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="krea2-shared-") as name:
        runs = {ranks: _run_group(ranks, device, Path(name) / str(ranks), deadline) for ranks in {1, *degrees}}
    kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    exact = runs[1][0]["float32"].double()
    results = []
    for ranks in degrees:
        for precision in PRECISIONS:
            ours, alone = runs[ranks][0][precision].double(), runs[1][0][precision].double()
            if precision == "float32":
                error = _largest((ours - exact).abs()) / max(1.0, exact.abs().max().item())
                allowed = FLOAT32_TOLERANCE
            else:
                error = (ours - exact).abs().mean().nan_to_num(float("inf")).item()
                allowed = LOW_PRECISION_FACTOR * (alone - exact).abs().mean().item()
            between = max(_largest((other[precision].double() - ours).abs()) for other in runs[ranks])
            results.append(Parity(ranks, kind, precision, error, allowed, between))
    return results


def run_rank(rank: int, ranks: int, device_name: str, folder: Path, timeout_s: float) -> None:
    """One process of a group: in each precision make the images and write their final latents to `folder`."""
    latents: dict[str, torch.Tensor] = {}
    config = EngineConfig(tp=ranks, device=device_name, share_gpu=True)
    device = pick_device(config, rank, ranks)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
    store = folder / "store"
    mesh = connect_mesh(rank, Degrees(tp=ranks), device, store_file=store, timeout_s=timeout_s, share_gpu=True)
    for precision, (dtype, quantization) in PRECISIONS.items():
        config = EngineConfig(
            tp=ranks,
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
    """Images of two sizes."""
    return [
        Job(
            job_id=image,
            prompt_ids=random_prompt(model, seed=image, tokens=8 + image),
            negative_ids=None,
            width=model.size_multiple * (4 + 2 * (image % 2)),
            height=model.size_multiple * 4,
            steps=STEPS,
            guidance=0.0,
            mu=0.0,  # timesteps that bfloat16 holds exactly, or their rounding would be most of the error
            seed=image,
        )
        for image in range(IMAGES)
    ]


def _run_group(ranks: int, device: str, folder: Path, deadline: float) -> list[dict[str, torch.Tensor]]:
    """Each rank's latents by precision. Whatever happens, none of the processes outlives this."""
    folder.mkdir()
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(ranks):
            seconds = max(1.0, deadline - time.monotonic())
            command = [sys.executable, "-m", "bench.shared_gpu", "--ranks", str(ranks), "--rank", str(rank)]
            command += ["--device", device, "--folder", str(folder), "--seconds", f"{seconds:.0f}"]
            with _log(folder, rank).open("wb") as log:
                processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=_ROOT))
        _wait(processes, folder, deadline)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
    return [load_file(folder / f"rank{rank}.safetensors") for rank in range(ranks)]


def _wait(processes: Sequence[subprocess.Popen[bytes]], folder: Path, deadline: float) -> None:
    """Until all have ended well. Raises `ProcessFailed` when the first one has not."""
    while any(process.poll() is None for process in processes):
        if any(process.poll() not in (None, 0) for process in processes):
            break
        if time.monotonic() > deadline:
            waiting = [rank for rank, process in enumerate(processes) if process.poll() is None]
            raise ProcessFailed(f"ranks {waiting} of {len(processes)} were not done in time; {_said(folder, waiting)}")
        time.sleep(0.05)
    failed = [rank for rank, process in enumerate(processes) if process.poll() not in (None, 0)]
    if failed:
        codes = [processes[rank].returncode for rank in failed]
        raise ProcessFailed(f"ranks {failed} of {len(processes)} ended with {codes}; {_said(folder, failed)}")


def _said(folder: Path, ranks: Sequence[int]) -> str:
    """The end of what the first of these ranks wrote."""
    lines = _log(folder, ranks[0]).read_text(errors="replace").strip().splitlines()
    said = "\n".join(["", *lines[-15:]]) if lines else " nothing"
    return f"rank {ranks[0]} said:{said}"


def _log(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.log"


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, which closes the pipe that is stdin here."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            os.read(0, 1)  # not sys.stdin, whose lock would be held at this process's own end
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _largest(errors: torch.Tensor) -> float:
    """The largest of them; NaN counts as infinite."""
    return errors.nan_to_num(float("inf")).max().item()


def _degrees(text: str) -> tuple[int, ...]:
    allowed = list(map(str, TENSOR_PARALLEL_DEGREES))
    words = text.split(",")
    if not set(words) <= set(allowed):
        raise argparse.ArgumentTypeError(f"must be of {', '.join(allowed)}, got {text}")
    return tuple(map(int, words))


_ROOT = Path(__file__).parent.parent

if __name__ == "__main__":
    end_with(main)
