"""Blocks left out on a device of the tests' own, which tells where the host waits and what relies on luck."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engine.config.engine_config import DIT_LAYERWISE
from engine.step import Job
from engine.step_cache.blocks.selective_pass import SelectivePass
from engine.step_cache.settings import StepCache
from tests.engine.parity.test_on_fake_cuda import CPU, Run, assert_same_images, fake_cuda
from tests.engine_runs import jobs_of
from tests.oracle import Request

CACHE = StepCache("blocks", warmup_steps=1, max_consecutive=1, order=1, max_cached=200, threshold=100.0)


def make_jobs(folder: Path) -> list[Job]:
    """One of which blocks are left out in every second step, one that decides to run them all, and one without."""
    requests = [
        Request("a red circle", 32, 32, steps=4, guidance=2.0),
        Request("a fox", 32, 48, steps=3, seeds=(1,)),
        Request("a fox in the snow", 32, 32, steps=3, seeds=(2,)),
    ]
    always, never, plain = jobs_of(folder, requests)
    return [replace(always, cache=CACHE), replace(never, cache=replace(CACHE, threshold=0.0)), plain]


@pytest.mark.parametrize(
    "offload", [(), pytest.param((DIT_LAYERWISE,), marks=pytest.mark.slow)], ids=["whole", "layerwise"]
)
def test_the_host_waits_for_decisions_and_for_nothing_else(turbo: Path, offload: tuple[str, ...]) -> None:
    expected = Run(turbo, CPU).run(make_jobs(turbo)).close().images
    with fake_cuda() as device:
        device.allow_waits(SelectivePass, "_decide")
        run = Run(turbo, device.device, offload=offload, attention="torch").run(make_jobs(turbo)).close()
    device.check()
    assert_same_images(run.images, expected)


@pytest.mark.slow
def test_a_decision_is_a_wait(turbo: Path) -> None:
    with fake_cuda() as device:
        Run(turbo, device.device, attention="torch").run(make_jobs(turbo)[:1]).close()
    assert {said.partition(":")[0] for said in device.violations} == {"wait"}
