"""What clients send a front-end, frame by frame: what makes no sense or is too long, and files behind a header."""

from __future__ import annotations

from pathlib import Path
from random import Random

import msgspec
import zmq

from engine.errors import ServerError
from launcher.client.async_client import AsyncClient
from launcher.messages.client_messages import (
    Acknowledge,
    Cancel,
    Failed,
    Generate,
    Ping,
    Pong,
    Status,
    StatusReply,
)
from launcher.messages.encoding import decode_reply, encode, most_frame_bytes
from launcher.messages.limits import Limits
from tests.launcher.fake_ranks import DEADLINE_S, fake_engine, run

PROMPT = "a red circle on a blue background"


def test_malformed_messages_are_answered_or_dropped_and_counted(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes:
            socket = fakes.raw()

            async def reply() -> object:
                return decode_reply((await socket.recv_multipart())[0])

            await socket.send(b"\xff garbage")
            answer = await reply()
            assert isinstance(answer, Failed)
            assert answer.request_id is None
            future = msgspec.msgpack.encode({"type": "generate", "version": 99, "request_id": "r", "new": 1})
            await socket.send(future)
            answer = await reply()
            assert isinstance(answer, Failed)
            assert (answer.request_id, answer.code) == ("r", ServerError.code)
            assert "protocol version 5, the client sent version 99" in answer.message
            await socket.send(msgspec.msgpack.encode({"type": "generate", "request_id": "s", "prompt": [1]}))
            answer = await reply()
            assert isinstance(answer, Failed)
            assert (answer.request_id, answer.parameter) == ("s", "prompt")
            await socket.send_multipart([b"", b"", b""])
            answer = await reply()
            assert isinstance(answer, Failed)
            assert "the first frame is empty" in answer.message
            await socket.send(encode(Ping()))
            assert isinstance(await reply(), Pong)
            async with AsyncClient(fakes.address) as client:
                assert (await client.status()).dropped_messages == 4

    run(test())


def test_no_sequence_of_frames_brings_the_front_end_down(run_folder: Path) -> None:
    async def test() -> None:
        random = Random(0)
        valid = [
            encode(message)
            for message in (
                Generate(request_id="r", prompt=PROMPT, steps=1, width=64, height=64),
                Cancel(request_id="r"),
                Acknowledge(request_id="r"),
                Ping(),
            )
        ]
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            socket = fakes.raw()
            for _ in range(600):
                frame = bytearray(random.choice(valid))
                for _ in range(random.randint(0, 3)):
                    frame[random.randrange(len(frame))] = random.randrange(256)
                await socket.send_multipart([bytes(frame)] * random.choice((1, 1, 1, 2, 3)))
            await socket.send(encode(Status()))
            reply = None
            while not isinstance(reply, StatusReply):
                reply = decode_reply((await socket.recv_multipart())[0])
            assert reply.dropped_messages > 200
            assert (await client.generate(PROMPT, steps=1)).seeds
            assert not fakes.served.done()

    run(test())


def test_a_frame_above_the_limit_ends_its_connection_and_nothing_else(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            socket = fakes.raw()
            monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            await socket.send(encode(Ping()))
            assert isinstance(decode_reply(await socket.recv()), Pong)
            await socket.send(b"x" * (most_frame_bytes(Limits()) + 1))
            assert await monitor.poll(int(1000 * DEADLINE_S)), "the connection was not ended"
            socket.disable_monitor()
            assert (await client.generate(PROMPT, steps=1)).seeds

    run(test())
