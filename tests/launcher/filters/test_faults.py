"""Filters that are killed, stopped, slow, out of memory or answer garbage: nothing unchecked leaves, and nobody else is
harmed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest

from engine.errors import FilterUnavailableError, LaunchError
from launcher.filters.checks import Judged
from launcher.filters.gate import Gate
from launcher.filters.protocol import Picture, Prompt
from launcher.filters.spec import read_specs
from launcher.filters.verdicts import Finding
from tests.launcher.filters.faulty_gate import TIMEOUT_S, filters, gate_of, run, turn, until
from tests.launcher.filters.stand_in import FAULTS, HANG, MARKER, STAND_IN
from tests.launcher.processes import wait_until

FAST = ("dies", "stops", "garbage")
ONCE = [pytest.param(fault, marks=() if fault in FAST else pytest.mark.slow) for fault in FAULTS]
ALWAYS = [pytest.param(fault, marks=() if fault in ("dies", "sleeps") else pytest.mark.slow) for fault in FAULTS]


async def outlast(faults: Path, checks: Coroutine[Any, Any, Any], *seconds: float) -> Any:
    """Let time pass for each fault that hangs, as soon as it has begun."""
    task = asyncio.ensure_future(checks)
    for count, passing in enumerate(seconds, 1):
        await until(lambda count=count: len([*faults.iterdir()]) >= count or task.done())  # type: ignore[misc]
        turn(passing)
    return await task


@pytest.mark.parametrize("fault", ONCE)
def test_a_check_is_tried_once_more_in_another_process(tmp_path: Path, fault: str) -> None:
    async def main() -> None:
        async with gate_of(tmp_path, options=",most=1") as (gate, failures):
            hangs = (TIMEOUT_S / 2 + 1,) if fault in HANG else ()
            judged = await outlast(tmp_path, gate.check_prompt(Prompt(f"{fault} finds:plain=1")), *hangs)
            assert (judged, failures) == (Judged(), [])

    run(main())


@pytest.mark.parametrize("fault", ALWAYS)
def test_what_cannot_be_checked_does_not_pass_and_harms_nothing_beside_it(tmp_path: Path, fault: str) -> None:
    """The one prompt over which a filter fails is in a batch with seven others."""

    async def main() -> None:
        async with gate_of(tmp_path) as (gate, failures):
            prompts = ["a cat", "a dog", f"{fault} x", *(f"a bird {index}" for index in range(5))]
            checks = asyncio.gather(*(gate.check_prompt(Prompt(prompt)) for prompt in prompts), return_exceptions=True)
            hangs = (TIMEOUT_S / 2 + 1, TIMEOUT_S / 6) if fault in HANG else ()
            judged = await outlast(tmp_path, awaited(checks), *hangs)
            error = judged.pop(2)
            assert judged == [Judged()] * 7
            assert isinstance(error, FilterUnavailableError)
            assert error.message == "content filter mine did not answer, and nothing that it has not seen is let out"
            assert error.retry_after_s is not None
            assert len([*tmp_path.iterdir()]) == 2
            ((label, reason),) = failures
            assert (label, reason) == ("mine", REASONS.get(fault, fault))

    run(main())


REASONS = {
    **dict.fromkeys(("dies", "crashes", "exits"), "died"),
    **dict.fromkeys(HANG, "late"),
    **dict.fromkeys(("nan", "noise"), "garbage"),
    "raises": "error",
}


async def awaited(future: asyncio.Future[Any]) -> Any:
    return await future


def test_what_cannot_be_checked_passes_with_a_warning_where_that_is_wanted(tmp_path: Path) -> None:
    async def main() -> None:
        async with gate_of(tmp_path, fail_open=True) as (gate, failures):
            judged = await gate.check_prompt(Prompt("unavailable"))
            assert judged.action == "allow"
            assert judged.findings == (Finding("mine", "prompt", "allow", "unchecked", 0.0),)
            assert judged.warnings == ("content filter mine did not answer: this went unchecked",)
            assert failures == [("mine", "unavailable")]

    run(main())


@pytest.mark.parametrize("fail_open", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_picture_that_cannot_be_marked_is_sent_only_where_that_is_wanted(tmp_path: Path, fail_open: bool) -> None:
    async def main() -> None:
        picture = Picture(1, 1, b"\0\0\0", "image", "a cat")
        async with gate_of(tmp_path, fail_open=fail_open, more=[f"{MARKER},name=mark,fails=yes"]) as (gate, _):
            if not fail_open:
                with pytest.raises(FilterUnavailableError, match="content filter mark did not answer"):
                    await gate.check_image(picture)
            else:
                judged = await gate.check_image(picture)
                assert (judged.action, judged.rgb) == ("allow", None)
                assert judged.warnings == ("content filter mark did not answer: the picture is not marked",)

    run(main())


def test_a_process_that_ends_while_nobody_asks_is_replaced_before_anybody_does(tmp_path: Path) -> None:
    async def main() -> None:
        async with gate_of(tmp_path) as (gate, failures):
            (process,) = filters()
            process.kill()
            await until(lambda: gate.not_ready == "content filter mine is starting")
            turn(0.5)
            await until(lambda: gate.not_ready is None)
            assert await gate.check_prompt(Prompt("a cat")) == Judged()
            assert failures == []

    run(main())


def test_a_filter_that_does_not_come_up_again_fails_at_once_until_it_does(tmp_path: Path) -> None:
    gone = tmp_path / "gone"

    async def main() -> None:
        faults = tmp_path / "faults"
        faults.mkdir()
        async with gate_of(faults, options=f",gone={gone}") as (gate, failures):
            gone.touch()
            with pytest.raises(FilterUnavailableError) as raised:
                await gate.check_prompt(Prompt("dies"))
            assert raised.value.retry_after_s == 0.5
            await until(lambda: gate.not_ready == "content filter mine is down")
            with pytest.raises(FilterUnavailableError):
                await gate.check_prompt(Prompt("a cat"))
            assert {*failures} == {("mine", "start")}
            gone.unlink()
            turn(1.0)
            await until(lambda: gate.not_ready is None)
            assert await gate.check_prompt(Prompt("a cat")) == Judged()

    run(main())


def test_whoever_waits_when_the_server_stops_hears_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with gate_of(tmp_path) as (gate, _):
            check = asyncio.ensure_future(gate.check_prompt(Prompt("sleeps")))
            await until(lambda: bool([*tmp_path.iterdir()]))
            waits = asyncio.ensure_future(gate.check_prompt(Prompt("a cat")))
            await asyncio.sleep(0)
            gate.close()
            for each in (check, waits, gate.check_prompt(Prompt("a dog"))):
                with pytest.raises(FilterUnavailableError):
                    await each

    run(main())


def test_whoever_waits_for_filters_that_do_not_come_up_hears_it() -> None:
    async def main() -> None:
        gate = Gate(read_specs([f"{STAND_IN},fails=raise"]), fail_open=False)
        check = asyncio.ensure_future(gate.check_prompt(Prompt("a cat")))
        with pytest.raises(LaunchError):
            await gate.start()
        with pytest.raises(FilterUnavailableError):
            await check

    run(main())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_nobody_gets_another_ones_answer(tmp_path: Path, seed: int) -> None:
    """Each prompt has a score of its own. Some give up, and two processes fail in every way but by hanging."""
    random = Random(seed)
    faults = [fault for fault in FAULTS if fault not in HANG]

    async def check(gate: Gate, index: int) -> None:
        fault = random.choice(faults) if random.random() < 0.03 else ""
        await asyncio.sleep(random.random())
        checking = gate.check_prompt(Prompt(f"{fault} finds:plain={index / 1000}"))
        try:
            async with asyncio.timeout(0.001 if random.random() < 0.1 else None):
                judged = await checking
        except TimeoutError:
            return
        except FilterUnavailableError:
            assert fault
        else:
            assert not fault
            assert judged.findings == (Finding("mine", "prompt", "log", "plain", index / 1000),)

    async def main() -> None:
        async with gate_of(tmp_path, options=",log=0.001,block=never,workers=2,batch=5") as (gate, _):
            await asyncio.gather(*(check(gate, index) for index in range(1, 600)))
            await until(lambda: gate.not_ready is None)

    run(main())


@pytest.mark.slow
def test_no_process_outlives_a_server_that_is_killed(tmp_path: Path) -> None:
    program = f"""
import asyncio
from launcher.filters.gate import Gate
from launcher.filters.spec import read_specs
async def main():
    await Gate(read_specs([{STAND_IN!r} + ",workers=2"]), fail_open=False).start()
    print("started", flush=True)
    await asyncio.sleep(3600)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "started\n"
        children = psutil.Process(server.pid).children()
        assert len(children) == 2
        server.kill()
    wait_until(lambda: not any(child.is_running() for child in children), "the end of filters without a server")
