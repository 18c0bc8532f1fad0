"""How a denoise step scales over 2 and 4 GPUs: each mode's compute, measured, and its communication.

    python -m bench.scaling [--modes one,tp2,sp2,…] [--sides 512,1024,2048] [--guided] [--quantization none,fp8]
                            [--bandwidth 340] [--exchange-bandwidth 250] [--latency 13] [--measure] [--seconds N]
                            [--json FILE]

One device is enough: rank 0's part of a step is timed with the other ranks not there, and what it would send is added
at `--bandwidth` GB/s a direction, rows for heads at `--exchange-bandwidth`, plus `--latency` µs for every operation
that waits for other ranks, nothing overlapping anything: a little much, since the gate's product hides the exchange
before attention. Such times are modelled, and say so; the VAE, prompts and the host are not in them. With `--guided` an
image has two segments.

Rank 0 counts what it sends, which must be what `engine.planning.traffic.sent_in_step` says, to the byte: if it is not,
this ends with 1. With `--measure` every mode also runs for real, a process a rank, each on a GPU of its own, or on the
CPU with gloo.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import torch

from bench.engines.rank_processes import ProcessFailed, end_with_parent, run_ranks
from bench.engines.real_size import RandomWeights, random_prompt
from bench.engines.results import Results
from bench.engines.runner import run_main
from bench.engines.setup import Setup, Version, add_options, read_options
from bench.measure.arguments import end_with, modes, parse_sides
from bench.measure.output import note, publish_left_out
from bench.measure.timing import Spread, gpu_state, time_calls
from bench.scaling.mesh_groups import counting, lone_mesh
from engine.config.chat_template import PREFIX_TOKENS
from engine.config.degrees import Degrees
from engine.config.engine_config import EngineConfig
from engine.device.devices import pick_device
from engine.errors import ArgumentError
from engine.parallel.distributed import connect_mesh
from engine.parallel.mesh import Mesh
from engine.planning.traffic import Sent, exchanged_in_step, sent_in_step
from engine.rank.rank import Rank
from engine.step import Job, Step

MODES = "one,tp2,sp2,tp4,tp2xsp2,sp4"
GUIDED_MODES = "one,cfg,tp2,sp2,tp2xcfg,sp2xcfg,tp4,tp2xsp2,sp4"
SIDES, SMALL_SIDES = "1024,512,2048", "64,96"
_STEPS = 5
_GROUP_S = 300.0  # for the processes of one mode


@dataclass(frozen=True)
class Timed:
    """A rank's steps: the median of their seconds, and what it sent in one of them."""

    seconds: float
    bytes: float
    operations: float


@dataclass(frozen=True)
class Scaling:
    """One mode at one size. step_s is modelled: compute_s, the median of rank 0's measured steps, and communication_s.
    measured_s: of the slowest rank, if all ran. as_stated: whether rank 0 sent what the formula says."""

    mode: str
    ranks: int
    side: int
    guided: bool
    quantization: str
    attention: str
    compute_s: float
    sent_bytes: int
    operations: int
    communication_s: float
    step_s: float
    of_one: float | None  # how many times as fast as one rank
    measured_s: float | None
    as_stated: bool
    bandwidth: float  # bytes/s
    exchange_bandwidth: float
    latency_s: float
    gpu_before: dict[str, float | str] | None
    gpu_after: dict[str, float | str] | None


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--modes", type=modes, help=f"comma-separated ({MODES}; with --guided {GUIDED_MODES})")
    parser.add_argument("--sides", help="of the image, comma-separated")
    parser.add_argument("--guided", action="store_true", help="two segments an image")
    parser.add_argument("--bandwidth", type=float, default=340.0, help="GB/s that a rank sends at (340)")
    parser.add_argument(
        "--exchange-bandwidth", type=float, default=250.0, help="the same where it exchanges rows for heads (250)"
    )
    parser.add_argument("--latency", type=float, default=13.0, help="µs of an operation that waits for others (13)")
    parser.add_argument("--measure", action="store_true", help="run all ranks of every mode too")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)  # a process of a mode
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    add_options(parser, quantization="none,fp8")
    try:
        return run_main(_run, parser, sys.argv[1:] if words is None else words)
    except ProcessFailed as error:
        note(f"error: {error}")
        return 1


def _run(arguments: argparse.Namespace) -> Results | None:
    for name in ("bandwidth", "exchange_bandwidth"):
        if not getattr(arguments, name) > 0:
            raise ArgumentError.of(name, "above 0", getattr(arguments, name))
    if not arguments.latency >= 0:
        raise ArgumentError.of("latency", "0 or more", arguments.latency)
    setup = read_options(arguments)
    chosen = arguments.modes or modes(GUIDED_MODES if arguments.guided else MODES)
    sides = parse_sides(
        "sides", arguments.sides or (SIDES if arguments.size == "real" else SMALL_SIDES), setup.model.size_multiple
    )
    if arguments.rank is not None:
        end_with_parent()
        _run_rank(arguments, setup, chosen[0], sides)
        return None
    columns = ("mode", "weights in", "image", "compute", "sent", "operations", "communication", "step (modelled)")
    results = Results("scaling", setup, (*columns, "× one rank", "measured", "counted"))
    if setup.peer != "none":
        raise ArgumentError.of("peer", "none", setup.peer)
    left_out: list[str] = []
    versions = list(dict.fromkeys(replace(version, cuda_graphs=False) for version in setup.versions))
    for version in versions:
        alone: dict[int, float] = {}
        for degrees in chosen:
            if setup.budget.spent and results.any:
                note(f"{degrees.name} with {version} is left out: the time is up")
                left_out.append(f"{degrees.name} with {version}")
                continue
            try:
                setup.model.check_parallel(degrees.tp, degrees.sp)
            except ArgumentError as error:
                note(f"{degrees.name} is left out: {error}")
                continue
            mesh, before = lone_mesh(degrees), gpu_state(setup.device)
            timed = time_steps(setup, version, degrees, mesh, setup.device, sides, arguments.guided)
            gc.collect()  # the rank refers to itself, and holds memory that rank 0's process needs
            torch.cuda.empty_cache()
            measured = _measure(arguments, setup, version, degrees) if arguments.measure else {}
            gpu = before, gpu_state(setup.device)
            for side in sides:
                result = _result(
                    arguments,
                    setup,
                    version,
                    degrees,
                    side,
                    gpu,
                    timed[side],
                    measured.get(side),
                    alone.get(side),
                )
                if degrees.ranks == 1:
                    alone[side] = result.step_s
                results.add(result, _row(result))
                if not result.as_stated:
                    results.fail(f"{result.mode} at {side}²", "rank 0 did not send what the formula says")
    publish_left_out(left_out, len(versions) * len(chosen), setup.json)
    return results


def segments_of(setup: Setup, side: int, *, guided: bool) -> list[tuple[int, int]]:
    """(text tokens, image tokens) of the segments of one image."""
    prompts = [ids for job in [new_job(setup, 0, side, guided=guided)] for ids in job.prompts]
    return [(len(ids) - PREFIX_TOKENS, setup.model.image_tokens(side, side)) for ids in prompts]


def new_job(setup: Setup, number: int, side: int, *, guided: bool) -> Job:
    """A guided one has a negative prompt that is as long as the prompt."""
    prompt, negative = (random_prompt(setup.model, 2 * number + i, setup.prompt_tokens) for i in range(2))
    return Job(
        job_id=number,
        prompt_ids=prompt,
        negative_ids=negative if guided else None,
        width=side,
        height=side,
        steps=_STEPS + 2,
        guidance=3.5 if guided else 0.0,
        mu=None,
        seed=number,
    )


def time_steps(
    setup: Setup,
    version: Version,
    degrees: Degrees,
    mesh: Mesh,
    device: torch.device,
    sides: Sequence[int],
    guided: bool,
) -> dict[int, Timed]:
    """A rank's steps of one image, by its side."""
    counted, counter = counting(mesh)
    rank = _make_rank(setup, version, degrees, counted, device)
    numbers = itertools.count()
    timed = {}
    for job_id, side in enumerate(sides):
        rank.execute(Step(next(numbers), start=(new_job(setup, job_id, side, guided=guided),))).wait()
        step = functools.partial(_step, rank, numbers, job_id)
        step()
        rank.build_attention_plans()
        counter.sent = Sent()
        seconds = Spread.of(time_calls(step, _STEPS, device)).median
        steps = _STEPS + 1  # the first of which is not timed
        timed[side] = Timed(seconds, counter.sent.bytes / steps, counter.sent.operations / steps)
        rank.execute(Step(next(numbers), release=(job_id,))).wait()
    rank.close()
    return timed


def _step(rank: Rank, numbers: Iterator[int], job_id: int) -> None:
    rank.execute(Step(next(numbers), denoise=(job_id,)))


def _make_rank(setup: Setup, version: Version, degrees: Degrees, mesh: Mesh, device: torch.device) -> Rank:
    config = EngineConfig(
        tp=degrees.tp,
        sp=degrees.sp,
        cfg_parallel=degrees.cfg > 1,
        device=device.type,
        dtype=str(setup.dtype).removeprefix("torch."),
        quantization=version.quantization,
        attention=version.attention,
        cuda_graphs=False,  # which collectives have no part in
    )
    rank = Rank(config, mesh, device, weights=RandomWeights(setup.model, device))
    rank.warm_up()
    return rank


def _result(
    arguments: argparse.Namespace,
    setup: Setup,
    version: Version,
    degrees: Degrees,
    side: int,
    gpu: tuple[dict[str, float | str] | None, dict[str, float | str] | None],
    timed: Timed,
    measured: Timed | None,
    alone_s: float | None,
) -> Scaling:
    segments = segments_of(setup, side, guided=arguments.guided)
    sent = sent_in_step(
        setup.model.transformer, segments, degrees, setup.bytes_per_element, fp8=version.quantization == "fp8"
    )
    exchanges = exchanged_in_step(setup.model.transformer, segments, degrees, setup.bytes_per_element)
    exchanged = sum(exchanges, Sent())
    bandwidth, exchange_bandwidth = arguments.bandwidth * 1e9, arguments.exchange_bandwidth * 1e9
    latency_s = arguments.latency * 1e-6
    communication_s = (sent - exchanged).seconds(bandwidth, latency_s)
    communication_s += exchanged.seconds(exchange_bandwidth, latency_s)
    step_s = timed.seconds + communication_s
    if degrees.ranks == 1:
        alone_s = step_s
    return Scaling(
        mode=degrees.name,
        ranks=degrees.ranks,
        side=side,
        guided=arguments.guided,
        quantization=version.quantization,
        attention=version.attention,
        compute_s=timed.seconds,
        sent_bytes=sent.bytes,
        operations=sent.operations,
        communication_s=communication_s,
        step_s=step_s,
        of_one=alone_s / step_s if alone_s is not None else None,
        measured_s=None if measured is None else measured.seconds,
        as_stated=all(
            (each.bytes, each.operations) == (sent.bytes, sent.operations) for each in (timed, measured) if each
        ),
        bandwidth=bandwidth,
        exchange_bandwidth=exchange_bandwidth,
        latency_s=latency_s,
        gpu_before=gpu[0],
        gpu_after=gpu[1],
    )


def _row(result: Scaling) -> list[str]:
    row = [
        result.mode,
        result.quantization,
        f"{result.side}²",
        _ms(result.compute_s),
        f"{result.sent_bytes / 1e6:.1f} MB",
    ]
    row += [str(result.operations), _ms(result.communication_s), _ms(result.step_s)]
    row.append("" if result.of_one is None else f"{result.of_one:.2f}×")
    row.append("" if result.measured_s is None else _ms(result.measured_s))
    row.append("as stated" if result.as_stated else "DIFFERS")
    return row


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


# ---- all ranks


def _measure(arguments: argparse.Namespace, setup: Setup, version: Version, degrees: Degrees) -> dict[int, Timed]:
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


def _run_rank(arguments: argparse.Namespace, setup: Setup, degrees: Degrees, sides: Sequence[int]) -> None:
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


if __name__ == "__main__":
    end_with(main)
