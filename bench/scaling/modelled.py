"""How long a step takes on several GPUs: what rank 0 computed, and what it would send at a given bandwidth."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from bench.engines.setup import Setup, Version
from bench.scaling.steps import Timed, new_job
from engine.config.chat_template import PREFIX_TOKENS
from engine.config.degrees import Degrees
from engine.planning.work_division import sent_in_step


@dataclass(frozen=True)
class Scaling:
    """One mode at one size. step_s is modelled: compute_s, the median of rank 0's measured steps, and communication_s.
    measured_s: of the slowest rank, if all ran. as_stated: whether rank 0 sent what the formula says. One field for
    each value of the JSON line."""

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


def model_step(
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
    """One mode at one size, from what was measured of it and of one rank."""
    segments = segments_of(setup, side, guided=arguments.guided)
    inwards, outwards, others = sent_in_step(
        setup.model.transformer, segments, degrees, setup.bytes_per_element, fp8=version.quantization == "fp8"
    )
    exchanged = inwards + outwards
    sent = exchanged + others
    bandwidth, exchange_bandwidth = arguments.bandwidth * 1e9, arguments.exchange_bandwidth * 1e9
    latency_s = arguments.latency * 1e-6
    communication_s = others.seconds(bandwidth, latency_s)
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


def segments_of(setup: Setup, side: int, *, guided: bool) -> list[tuple[int, int]]:
    """(text tokens, image tokens) of the segments of one image."""
    prompts = [ids for job in [new_job(setup, 0, side, guided=guided)] for ids in job.prompts]
    return [(len(ids) - PREFIX_TOKENS, setup.model.image_tokens(side, side)) for ids in prompts]
