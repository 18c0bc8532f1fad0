"""Clients that are processes of the front-end's own: nobody guesses by their silence whether they live."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import zmq.asyncio

from launcher.client.async_client import AsyncClient
from launcher.messages.client_messages import Generate, Ping, StatusReply
from launcher.messages.encoding import encode
from launcher.messages.own_clients import PREFIX, OwnClients
from tests.launcher.fake_ranks import DEADLINE_S, Fakes, fake_engine, run
from tests.launcher.http_servers import PATH, PROMPT, http_server
from tests.launcher.processes import PATIENCE_S, Marked

REQUEST = encode(Generate(request_id="mine", prompt=PROMPT))


def connect(fakes: Fakes, name: bytes) -> zmq.asyncio.Socket:
    socket = fakes.context.socket(zmq.DEALER)
    socket.routing_id = name
    socket.connect(fakes.address)
    return socket


async def status_when(client: AsyncClient, *, running: int, failed: int) -> StatusReply:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            status = await client.status()
            if (status.running + status.waiting, status.failed) == (running, failed):
                return status
            await asyncio.sleep(0.01)


def test_silence_ends_the_requests_of_strangers_and_the_end_of_its_process_those_of_an_own_client(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def test() -> None:
        own = OwnClients()
        name = own.add()
        async with fake_engine(run_folder, lease_s=0.2, own_clients=own) as fakes, AsyncClient(fakes.address) as other:
            fakes.ranks[0].hold = True
            for socket in (connect(fakes, name), connect(fakes, b"stranger")):
                await socket.send(REQUEST)
            await status_when(other, running=1, failed=1)
            assert b'outcome="cancelled"} 1.0' in await other.metrics()
            await asyncio.sleep(1.5)  # in which leases are looked at
            await status_when(other, running=1, failed=1)
            await asyncio.to_thread(own.end, name)
            await status_when(other, running=0, failed=2)
            assert b'outcome="server_unavailable"} 1.0' in await other.metrics()

    run(test())


def test_nobody_speaks_under_the_name_of_a_process_that_has_ended_or_never_was(run_folder: Path) -> None:
    async def test() -> None:
        own = OwnClients()
        name = own.add()
        async with fake_engine(run_folder, own_clients=own) as fakes, AsyncClient(fakes.address) as other:
            ended, guessed = connect(fakes, name), connect(fakes, PREFIX + b"guessed")
            await ended.send(encode(Ping()))
            await ended.recv()
            own.end(name)
            assert name in own  # until the front-end has ended what it wanted
            async with asyncio.timeout(DEADLINE_S):
                while name in own:
                    await asyncio.sleep(0)
            await ended.send(REQUEST)
            await guessed.send(REQUEST)
            async with asyncio.timeout(DEADLINE_S):
                while (status := await other.status()).dropped_messages < 2:
                    await asyncio.sleep(0.01)
            assert (status.running, status.waiting, status.done) == (0, 0, 0)

    run(test())


def test_names_are_not_alike_and_are_forgotten_where_no_front_end_follows() -> None:
    own = OwnClients()
    first, second = own.add(), own.add()
    assert first != second
    assert min(len(first), len(second)) >= len(PREFIX) + 16
    own.end(first)
    assert (first in own, second in own) == (False, True)


def test_a_request_that_is_lost_within_the_server_is_not_the_client_s_hang_up(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the front-end takes the HTTP process for a stranger, and ends its lease."""
    monkeypatch.setattr("launcher.client.connection.PING_S", 3600.0)

    async def test() -> None:
        async with fake_engine(run_folder, lease_s=0.2) as fakes, http_server(fakes.address) as client:
            fakes.ranks[0].hold = True
            plain, streamed = await asyncio.gather(
                client.post(PATH, json={"prompt": PROMPT}),
                client.post(PATH, json={"prompt": PROMPT, "stream": True}),
            )
            assert (plain.status_code, plain.json()["error"]["code"]) == (503, "server_unavailable")
            assert int(plain.headers["Retry-After"]) >= 1
            assert '"code":"server_unavailable"' in streamed.text
            text = (await client.get("/metrics")).text
            assert f'krea2_http_requests_total{{method="POST",route="{PATH}",status="503"}} 1.0' in text
            assert 'status="499"' not in text

    run(test())


LAUNCHED = """
from engine.config.engine_config import EngineConfig
from launcher.client import connection
from launcher.messages.configs import FrontendConfig
from launcher.setup.launch import launch_frontend

connection.PING_S = 3600.0  # as if it were stopped
with launch_frontend(FrontendConfig(engine=EngineConfig(device="cpu"), warm_up=False, lease_s=1.0)) as client:
    print(client.generate("x", steps=30, width=64, height=64).attempt)
"""


def test_a_program_that_launched_an_engine_may_be_stopped_for_as_long_as_its_user_likes(marked: Marked) -> None:
    marked.use_hollow_ranks()
    stdout, stderr = marked.start_script(LAUNCHED).communicate(timeout=PATIENCE_S)
    assert stdout == "1\n", stderr
