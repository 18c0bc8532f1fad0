"""`launch_async`: an engine of a program with an event loop, which goes on while it starts and stops."""

from __future__ import annotations

import asyncio
import inspect
import threading
from typing import Any

import pytest

from engine.errors import ArgumentError, CheckpointError, LaunchError
from launcher import launch, launch_async
from tests.launcher.processes import PATIENCE_S, Marked

LIFE = f"""
import asyncio, gc
import psutil
from krea2 import AsyncClient, Client, ServerError, launch_async
from tests.launcher.processes import PATIENCE_S

def engine():
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            found += [] if process.status() == psutil.STATUS_ZOMBIE else [process]
        except psutil.NoSuchProcess:
            pass
    return found

def start(**options):
    return launch_async(device="cpu", warm_up=False, on_end=ends.append, **options)

async def until(happened):
    async with asyncio.timeout({PATIENCE_S}):
        while not happened():
            await asyncio.sleep(0.02)

async def count():
    global ticks
    while True:
        await asyncio.sleep(0.01)
        ticks += 1

async def main():
    global ticks, left
    counting = asyncio.create_task(count())
    async with start(tp=2, address="tcp://127.0.0.1:0") as client:
        assert ticks > 20
        assert isinstance(client, AsyncClient)
        assert client.address.startswith("tcp://127.0.0.1:")
        assert repr(client) == f"<Client of an engine of its own: demo, 2 ranks, {{client.address}}>"
        assert (await client.generate("a red circle", seed=7, steps=1)).seed == 7
        async with AsyncClient(client.address, connect_timeout_s={PATIENCE_S}) as other:
            assert (await other.status()).tp == 2
        ticks = 0
    assert ticks > 2
    assert not engine()
    assert repr(client) == "<Client of an engine of its own: demo, stopped>"
    await client.close()
    try:
        await client.ping()
    except ServerError as error:
        print(error)

    starting = asyncio.create_task(start())
    await until(engine)
    starting.cancel()
    await asyncio.wait([starting])
    assert starting.cancelled()
    assert not engine()
    assert not ends

    client = await start()
    drawing = asyncio.create_task(client.generate("x", steps=200, num_images=10))
    await until(lambda: client._calls)
    (frontend,) = [process for process in engine() if "_frontend" in process.cmdline()]
    frontend.kill()
    await asyncio.wait([drawing])
    (error,) = ends
    assert drawing.exception() is error
    print(str(error).split(",")[0])
    try:
        await client.status()
    except ServerError as error:
        assert error is ends[0]
    await client.close()
    await until(lambda: not engine())

    client = await start()
    tasks = len(asyncio.all_tasks())
    del client
    gc.collect()
    await until(lambda: not engine())
    await until(lambda: len(asyncio.all_tasks()) == tasks - 2)

    left = await start()
    raise KeyError("mine")

ticks, ends, left = 0, [], None
try:
    asyncio.run(main())
finally:
    assert len(ends) == 1
    assert engine()
"""


def test_an_engine_of_a_loop_ends_with_its_client_its_start_its_block_and_the_program(marked: Marked) -> None:
    marked.use_hollow_ranks()
    stdout, stderr = marked.start_script(LIFE).communicate(timeout=PATIENCE_S)
    assert stdout == "the client was closed\nthe front-end was killed by SIGKILL\n", stderr
    assert stderr.endswith("KeyError: 'mine'\n")
    assert "never retrieved" not in stderr
    assert not marked.alive()
    marked.expect_nothing_left()


def test_it_takes_what_launch_takes() -> None:
    ours, others = (inspect.signature(function).parameters for function in (launch_async, launch))
    assert {**ours} == {**others, "address": ours["address"], "on_end": ours["on_end"]}


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"model": "/no/such/folder"}, CheckpointError, "/no/such/folder: there is no such folder"),
        ({"tp": 3}, ArgumentError, "tp must be one of 1, 2, 4, got 3"),
        ({"torch_dtype": "bfloat16"}, TypeError, r"^launch_async\(\) got .* 'torch_dtype': here it is dtype$"),
        ({"on_end": 3}, ArgumentError, r"on_end must be a function that is called as on_end\(error\), got 3"),
        ({"address": "127.0.0.1"}, ArgumentError, r"^address must be tcp://HOST:PORT \(port 0 .* got '127.0.0.1'"),
        ({"address": 5555}, ArgumentError, "^address must be an address that only this machine reaches"),
        ({"address": "tcp://0.0.0.0:0"}, ArgumentError, "^address must be an address that only this machine reaches"),
        ({"address": f"ipc://{__file__}"}, ArgumentError, "^address must be a path where nothing lies but an old"),
    ],
)
def test_bad_arguments_are_refused_before_anything_starts(
    arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    async def start() -> None:
        async with launch_async(**arguments):
            raise AssertionError("started")

    with pytest.raises(kind, match=message):
        asyncio.run(start())


def test_the_loop_goes_on_while_files_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(*_: object) -> None:
        assert went_on.wait(PATIENCE_S)
        raise LaunchError("no room")

    async def start() -> None:
        asyncio.get_running_loop().call_later(0.01, went_on.set)
        await launch_async()

    went_on = threading.Event()
    monkeypatch.setattr("launcher.setup.async_launch.check_given", check)
    with pytest.raises(LaunchError, match="no room"):
        asyncio.run(start())


def test_a_warning_is_about_the_line_that_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    async def start() -> None:
        with pytest.raises(LaunchError):
            await asyncio.create_task(launch_async(loras=["demo-outlined"]))

    def fail(_: object) -> None:
        raise LaunchError("no room")

    monkeypatch.setattr("launcher.setup.async_launch.EngineProcess", fail)
    monkeypatch.setattr("launcher.setup.configure.os.path.exists", lambda _: True)
    with pytest.warns(UserWarning, match="lora demo-outlined is the demos' own") as caught:
        asyncio.run(start())
    assert [warning.filename for warning in caught] == [__file__]
