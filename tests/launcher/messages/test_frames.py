"""What clients send a front-end, frame by frame: what makes no sense or is too long, and files behind a header."""

from __future__ import annotations

from pathlib import Path
from random import Random

import msgspec
import pytest
import zmq

from engine.errors import ArgumentError, ServerError
from launcher.client.async_client import AsyncClient
from launcher.messages.client_messages import (
    Acknowledge,
    Cancel,
    Failed,
    Generate,
    Ping,
    Pong,
    Request,
    Status,
    StatusReply,
)
from launcher.messages.encoding import decode_reply, encode, most_frame_bytes, name_files
from launcher.messages.limits import Limits
from tests.launcher.fake_ranks import DEADLINE_S, fake_engine, run

PROMPT = "a red circle on a blue background"


def edit(*pictures: str) -> Generate:
    return Generate(request_id="r", prompt="x", pictures=pictures)


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


@pytest.mark.parametrize(
    ("message", "files", "parameter", "told"),
    [
        (Ping(), [b"x"], "pictures", "1 binary frames follow the header, and a ping message has none"),
        (
            Generate(request_id="r", prompt="x"),
            [b"x"],
            "pictures",
            "1 binary frames follow the header, and pictures names 0",
        ),
        (edit("image"), [b"x", b"y"], "pictures", "2 binary frames follow the header, and pictures names 1"),
        (edit("image", "mask"), [b"x"], "mask", "mask is one of pictures, and its file did not follow the header"),
        (edit("mask"), [b"x"], "mask", "mask needs the image that it is for"),
        (
            edit("image", "image"),
            [b"x", b"y"],
            "pictures",
            "must be different ones of image, mask, got 'image', 'image'",
        ),
        (edit("photo"), [b"x"], "pictures", "must be different ones of image, mask, got 'photo'"),
        (edit(*"x" * 100_000), [], "pictures", "must be different ones of image, mask, got 'x', 'x', 'x'"),
        (edit("image"), [b""], "image", "image must be a file of 1 to 10 bytes, got 0"),
        (edit("image", "mask"), [b"x", b"y" * 11], "mask", "mask must be a file of 1 to 10 bytes, got 11"),
    ],
)
def test_files_that_are_not_what_the_header_says_are_an_error(
    message: Request, files: list[bytes], parameter: str, told: str
) -> None:
    with pytest.raises(ArgumentError) as error:
        name_files(message, files, Limits(max_image_bytes=10))
    assert error.value.parameter == parameter
    assert told in error.value.message
    assert len(error.value.message) < 200


def test_files_are_named_in_the_order_of_the_header() -> None:
    assert name_files(edit("mask", "image"), [b"m", b"i"], Limits()) == {"mask": b"m", "image": b"i"}
    assert name_files(edit("image"), [], Limits()) == {}  # sent again: whoever knows the request needs no more


def test_files_that_make_no_sense_are_answered_by_the_name_of_their_request(run_folder: Path) -> None:
    async def test() -> None:
        async with (
            fake_engine(run_folder, limits=Limits(max_image_bytes=10)) as fakes,
            AsyncClient(fakes.address) as client,
        ):
            socket = fakes.raw()
            for frames, request_id in (([encode(edit("image")), b"x" * 11], "r"), ([b"x" * 300_000], None)):
                await socket.send_multipart(frames)
                answer = decode_reply(await socket.recv())
                assert isinstance(answer, Failed)
                assert (answer.request_id, answer.code) == (request_id, ArgumentError.code)
            assert (await client.status()).dropped_messages == 2

    run(test())
