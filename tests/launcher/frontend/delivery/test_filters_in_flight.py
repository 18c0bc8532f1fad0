"""What ends a request while filters have its prompt or its image, ranks that die meanwhile, and filters that start."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engine.errors import CancelledError, LaunchError, RequestTimeoutError, ServerError
from launcher.client.async_client import AsyncClient
from launcher.frontend.delivery.metrics import FilterMetrics
from tests.launcher.fake_ranks import fake_engine, run
from tests.launcher.frontend.delivery.fake_gate import FakeGate, filtered_engine, until
from tests.launcher.frontend.fake_clock import FakeClock
from tests.launcher.http_servers import PROMPT
from tests.launcher.processes import PATIENCE_S


@pytest.mark.parametrize(
    ("kind", "end"),
    [("prompt", "cancel"), ("prompt", "stop now"), ("image", "cancel"), ("image", "timeout"), ("image", "stop now")],
)
def test_what_ends_a_request_ends_the_check_and_is_told_at_once(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, end: str
) -> None:
    clock = FakeClock(monkeypatch)

    async def test() -> None:
        async with filtered_engine(run_folder, {"held": {kind}}) as (fakes, client, gate):
            timeout_s = 3 * PATIENCE_S if end == "timeout" else None
            call = asyncio.create_task(client.generate(PROMPT, steps=1, request_id="a", timeout_s=timeout_s))
            await until(lambda: gate.prompts if kind == "prompt" else gate.pictures)
            if end == "cancel":
                await client.cancel("a")
            elif end == "timeout":
                clock.jump(3 * PATIENCE_S)
            else:
                fakes.stop_now.set()
            expected = {"cancel": CancelledError, "timeout": RequestTimeoutError, "stop now": ServerError}[end]
            with pytest.raises(expected):
                await call
            await until(lambda: gate.cancelled == [kind])

    run(test())


def test_a_stop_waits_for_images_that_filters_have_and_for_no_prompt(run_folder: Path) -> None:
    async def test() -> None:
        async with filtered_engine(run_folder, {"held": {"image"}}, drain_s=30.0) as (fakes, client, gate):
            drawn = asyncio.create_task(client.generate(PROMPT, seed=3, steps=1))
            await until(lambda: gate.pictures)
            gate.held.add("prompt")
            waiting = asyncio.create_task(client.generate(PROMPT, steps=1))
            await until(lambda: len(gate.prompts) == 2)
            assert ((await client.status()).waiting, (await client.status()).running) == (1, 1)
            fakes.stop.set()
            with pytest.raises(ServerError, match="had not begun"):
                await waiting
            assert not drawn.done()
            gate.go_on("image")
            assert (await drawn).seed == 3

    run(test())


def test_an_image_that_filters_have_is_not_drawn_again_when_ranks_die(run_folder: Path) -> None:
    async def test() -> None:
        gate_options = {"held": {"image"}}
        async with filtered_engine(run_folder, gate_options, replace_ranks=True) as (fakes, client, gate):
            call = asyncio.create_task(client.generate(PROMPT, seed=3, steps=1))
            await until(lambda: gate.pictures)
            fakes.ranks[0].fail("internal_error", "a rank's own error")
            await fakes.has_generation(1)
            gate.go_on("image")
            assert (await call).seed == 3
            assert not [step for step in fakes.ranks[0].steps if step.start]

    run(test())


def test_a_server_has_started_when_its_filters_have(run_folder: Path) -> None:
    async def test() -> None:
        gates: list[FakeGate] = []

        def make_gate(metrics: object) -> FakeGate:
            gates.append(FakeGate(metrics, not_ready="filters start"))  # type: ignore[arg-type]
            return gates[0]

        wait = {"make_gate": make_gate, "wait": False}
        async with fake_engine(run_folder, **wait) as fakes, AsyncClient(fakes.address) as client:  # type: ignore[arg-type]
            while "filters" not in ((await client.status()).not_ready or ""):  # the ranks are ready before
                await asyncio.sleep(0.005)
            assert fakes.frontend._to_start == {"filters"}
            gates[0].not_ready = None
            gates[0].up.set()
            await until(lambda: not fakes.frontend._to_start)
            assert (await client.status()).ready

    run(test())


def broken(metrics: FilterMetrics, error: LaunchError) -> FakeGate:
    gate = FakeGate(metrics, start_error=error)
    gate.up.set()
    return gate


def test_filters_that_cannot_start_end_the_server_and_say_why(run_folder: Path) -> None:
    async def test() -> None:
        error = LaunchError("content filter fake cannot be started: no such folder")
        with pytest.raises(LaunchError, match="fake cannot be started: no such folder"):
            async with fake_engine(run_folder, make_gate=lambda metrics: broken(metrics, error)) as fakes:
                await fakes.served

    run(test())
