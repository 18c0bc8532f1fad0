"""A rank's steps of one image: how long they take, and what it sends."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from bench.engines.real_size import RandomWeights, random_prompt
from bench.engines.setup import Setup, Version
from bench.measure.timing import Spread, time_calls
from bench.scaling.mesh_groups import counting
from engine.config.degrees import Degrees
from engine.config.engine_config import EngineConfig
from engine.parallel.mesh import Mesh
from engine.planning.work_division import Traffic
from engine.rank.rank import Rank
from engine.rank.warm_up import warm_up
from engine.step import Job, Step

_STEPS = 5


@dataclass(frozen=True)
class Timed:
    """A rank's steps: the median of their seconds, and what it sent in one of them."""

    seconds: float
    bytes: float
    operations: float


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
        if rank.plans is not None:
            rank.plans.build_all()
        counter.sent = Traffic()
        seconds = Spread.of(time_calls(step, _STEPS, device)).median
        steps = _STEPS + 1  # the first of which is not timed
        timed[side] = Timed(seconds, counter.sent.bytes / steps, counter.sent.operations / steps)
        rank.execute(Step(next(numbers), release=(job_id,))).wait()
    rank.close()
    return timed


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
    warm_up(rank)
    return rank
