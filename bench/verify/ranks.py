"""The engine on one rank in this process, or on several that are processes of their own, as in a server.

    python -m bench.verify.ranks --plan FILE --rank N --folder FOLDER --seconds S

is one of those processes.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bench.engines.rank_processes import end_with_parent, run_ranks
from bench.measure.arguments import end_with
from bench.verify.ours import Results, Runner, Steps
from bench.verify.subject.stages import Traced
from engine.config.degrees import Degrees
from engine.config.engine_config import EngineConfig
from engine.device.devices import pick_device
from engine.parallel.distributed import connect_mesh
from engine.parallel.mesh import Mesh
from engine.rank.rank import Rank
from engine.rank.warm_up import warm_up
from engine.step import Job

_NOTE = "note"
_STEPS = ("latents", "velocities", "before")


@dataclass(frozen=True)
class Plan:
    """What the ranks are to compute. stages: the ones that diffusers has computed; inputs: of these stages."""

    folder: str
    device: str
    dtype: str
    jobs: Sequence[Job]
    traced: Traced
    stages: Collection[str]
    inputs: dict[str, torch.Tensor]
    steps: Steps

    def config(self, degrees: Degrees) -> EngineConfig:
        """Quantised is nothing: diffusers would not be what it is compared with."""
        gpus = torch.cuda.device_count() if self.device != "cpu" else 0
        share_gpu = 0 < gpus < degrees.ranks
        return EngineConfig(
            model=self.folder,
            device=self.device,
            dtype=self.dtype,
            quantization="none",
            tp=degrees.tp,
            sp=degrees.sp,
            cfg_parallel=degrees.cfg > 1,
            share_gpu=share_gpu,
            cuda_graphs=not share_gpu,  # gloo's collectives pass through the host, which no graph records
        )


def run_one(plan: Plan, say: Callable[[str], None]) -> Results:
    """On one rank, here. A stage that fails is among the results' failures."""
    config = plan.config(Degrees())
    device = pick_device(config, 0, 1)
    say(f"the engine in {plan.dtype}: loading")
    rank = Rank(config, Mesh(), device)
    try:
        return compute(rank, plan, say, catch=True)
    finally:
        rank.close()


def compute(rank: Rank, plan: Plan, say: Callable[[str], None], *, catch: bool) -> Results:
    """All that a rank of any group computes."""
    warm_up(rank, [(job.width, job.height) for job in plan.jobs], decodes=rank.model.mesh.world.size == 1)
    runner, results = Runner(rank), Results(note=_describe(rank))
    runner.images(plan.jobs, results, say, catch=catch)
    say("the engine: stages")
    runner.stages(plan.stages, plan.traced, plan.inputs, results, catch=catch)
    runner.steps(plan.steps, results, catch=catch)
    return results


def _describe(rank: Rank) -> str:
    size, choice = rank.model.mesh.world.size, rank.model.attention_choice
    ranks = "1 rank" if size == 1 else f"{size} ranks"
    graphs = "CUDA graphs of steps" if rank.denoiser.graphs is not None else "no CUDA graphs of steps"
    refused = choice.refused.items() if rank.model.device.type == "cuda" else ()
    return f"{ranks}, attention {choice.backend}, {graphs}" + "".join(f"; {name}: {why}" for name, why in refused)


def run_group(plan: Plan, degrees: Degrees, seconds: float) -> list[Results]:
    """On several ranks, each a process. The results of all; stages of the first. Raises `ProcessFailed`."""
    with tempfile.TemporaryDirectory(prefix="krea2-verify-") as name:
        file, folder = Path(name) / "plan.json", Path(name) / "ranks"
        _write(plan, degrees, file)
        run_ranks("bench.verify.ranks", ["--plan", str(file)], degrees.ranks, folder, time.monotonic() + seconds)
        return [_read_results(folder / f"rank{rank}.safetensors", plan) for rank in range(degrees.ranks)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.verify.ranks", description="One rank of bench.verify.")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args(arguments)
    end_with_parent()
    plan, degrees = _read(options.plan)
    config = plan.config(degrees)
    device = pick_device(config, options.rank, degrees.ranks)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // degrees.ranks))
    mesh = connect_mesh(
        options.rank,
        degrees,
        device,
        store_file=options.folder / "store",
        timeout_s=options.seconds,
        share_gpu=config.share_gpu,
    )
    rank = Rank(config, mesh, device)
    results = compute(rank, plan, lambda _: None, catch=False)
    _write_results(results, options.folder / f"rank{options.rank}.safetensors", stages=options.rank == 0)
    rank.close()
    mesh.close()
    return 0


# ---- files between the processes


def _write(plan: Plan, degrees: Degrees, file: Path) -> None:
    words: dict[str, Any] = {
        "folder": plan.folder,
        "device": plan.device,
        "dtype": plan.dtype,
        "degrees": asdict(degrees),
        "jobs": [asdict(job) for job in plan.jobs],
        "traced": asdict(plan.traced),
        "stages": list(plan.stages),
        "steps": {"job": asdict(plan.steps.job), "at": plan.steps.at},
    }
    file.write_text(json.dumps(words))
    save_file(plan.inputs, file.with_suffix(".inputs"))
    save_file({name: getattr(plan.steps, name) for name in _STEPS}, file.with_suffix(".steps"))


def _read(file: Path) -> tuple[Plan, Degrees]:
    words = json.loads(file.read_text())
    plan = Plan(
        words["folder"],
        words["device"],
        words["dtype"],
        [_job(job) for job in words["jobs"]],
        Traced(**words["traced"] | {"ids": tuple(words["traced"]["ids"])}),
        words["stages"],
        load_file(file.with_suffix(".inputs")),
        Steps(_job(words["steps"]["job"]), at=words["steps"]["at"], **load_file(file.with_suffix(".steps"))),
    )
    return plan, Degrees(**words["degrees"])


def _job(words: dict[str, Any]) -> Job:
    negative = words["negative_ids"]
    ids = {"prompt_ids": tuple(words["prompt_ids"]), "negative_ids": None if negative is None else tuple(negative)}
    return Job(**words | ids | {"loras": ()})


def _write_results(results: Results, file: Path, *, stages: bool) -> None:
    tensors = {f"noise/{image}": noise for image, noise in enumerate(results.noise)}
    for image, latents in enumerate(results.latents):
        tensors |= {f"latents/{image}/{step}": each for step, each in enumerate(latents)}
    if stages:
        tensors |= {f"stages/{name}": tensor for name, tensor in results.stages.items()}
    save_file(tensors, file, metadata={_NOTE: results.note})


def _read_results(file: Path, plan: Plan) -> Results:
    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        note = (opened.metadata() or {}).get(_NOTE, "")
    return Results(
        noise=[tensors[f"noise/{image}"] for image in range(len(plan.jobs))],
        latents=[
            [tensors[f"latents/{image}/{step}"] for step in range(job.steps)] for image, job in enumerate(plan.jobs)
        ],
        stages={name.removeprefix("stages/"): tensor for name, tensor in tensors.items() if name.startswith("stages/")},
        note=note,
    )


if __name__ == "__main__":
    end_with(main)
