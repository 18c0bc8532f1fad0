"""Requests with pictures while these are being read: by ranks that compute nothing, and a reader that waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from engine.config.engine_config import EngineConfig
from engine.errors import (
    ArgumentError,
    CancelledError,
    IdempotencyConflictError,
    Krea2Error,
    QueueFullError,
    RequestTimeoutError,
    ServerError,
)
from engine.pictures.pixels import Pixels
from launcher.client import connection
from launcher.client.async_client import AsyncClient
from launcher.client.results import Result
from launcher.frontend import intake
from launcher.messages import encoding
from launcher.messages.client_messages import Accepted, Generate
from launcher.messages.encoding import decode_reply, encode
from launcher.messages.limits import Limits
from launcher.pictures.prepared import PreparedPicture
from tests.launcher.fake_ranks import DEADLINE_S, Fakes, fake_engine, run

PROMPT = "a red circle on a blue background"
FILE = b"a picture's file"


class Reader:
    """Gives a picture of 64 × 48 for any file, or the error that it is to raise, once it is let go on."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.error: Krea2Error | None = None
        self.begun: list[str] = []
        self.ended: list[str] = []

    async def read(self, request: Generate, files: Mapping[str, bytes], *_: object) -> PreparedPicture:
        self.begun.append(request.prompt)
        try:
            await self.go_on.wait()
        finally:
            self.ended.append(request.prompt)
        if self.error is not None:
            raise self.error
        return PreparedPicture((64, 48), Pixels(64, 48, bytes(64 * 48 * 3)))

    def close(self) -> None:
        self.closed = True


@asynccontextmanager
async def engine(run_folder: Path, **options: Any) -> AsyncIterator[tuple[Fakes, AsyncClient, Reader]]:
    reader = Reader()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intake, "PictureReader", lambda: reader)
        async with fake_engine(run_folder, **options) as fakes, AsyncClient(fakes.address) as client:
            yield fakes, client, reader
        assert reader.closed


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not is_so():
            await asyncio.sleep(0.005)


async def begun(client: AsyncClient, reader: Reader, prompt: str = PROMPT, **fields: Any) -> asyncio.Task[Result]:
    """A call whose picture is being read."""
    call = asyncio.create_task(client.generate(prompt, image=FILE, steps=2, **fields))
    await until(lambda: prompt in reader.begun or call.done())
    return call


def test_a_request_is_taken_once_its_picture_has_been_read(run_folder: Path) -> None:
    async def test() -> None:
        async with engine(run_folder) as (fakes, client, reader):
            call = await begun(client, reader, request_id="edit")
            assert (await client.status()).waiting == 1
            other = await client.generate("no picture", steps=1)  # nobody else waits for it
            assert other.width == 128
            assert not fakes.ranks[0].steps[-1].encode
            reader.go_on.set()
            result = await call
            assert (result.width, result.height) == (64, 48)
            (picture,) = [picture for step in fakes.ranks[0].steps for picture in step.encode]
            assert (picture.width, picture.height, picture.masked) == (64, 48, False)
            assert (await client.status()).waiting == 0

    run(test())


@pytest.mark.parametrize("end", ["cancel", "hang up", "timeout", "unreadable", "stop"])
def test_what_ends_a_request_ends_the_reading_and_is_told_at_once(run_folder: Path, end: str) -> None:
    async def test() -> None:
        async with engine(run_folder) as (fakes, client, reader):
            timeout_s = 0.05 if end == "timeout" else None
            call = await begun(client, reader, request_id="edit", timeout_s=timeout_s)
            expected: tuple[type[BaseException], str] = (CancelledError, "the request was cancelled")
            if end == "cancel":
                await client.cancel("edit")
            elif end == "hang up":
                call.cancel()
                expected = asyncio.CancelledError, "^$"
            elif end == "timeout":
                expected = RequestTimeoutError, r"timeout_s of 0\.05"
            elif end == "unreadable":
                reader.error = ArgumentError("image is damaged", parameter="image")
                reader.go_on.set()
                expected = ArgumentError, "image is damaged"
            else:
                fakes.stop.set()
                expected = ServerError, "being stopped, and the request had not begun"
            with pytest.raises(expected[0], match=expected[1]):
                await call
            await until(lambda: reader.ended == [PROMPT])
            assert not [*fakes.frontend._requests._arrivals]
            assert fakes.ranks[0].steps == []

    run(test())


def test_a_client_whose_lease_ends_is_not_waited_for(run_folder: Path) -> None:
    async def test() -> None:
        async with engine(run_folder, lease_s=0.2) as (fakes, _, reader):
            socket = fakes.raw()
            await socket.send_multipart([encode(Generate(request_id="x", prompt=PROMPT, pictures=("image",))), FILE])
            await until(lambda: reader.ended == [PROMPT])

    run(test())


def test_the_same_again_is_harmless_and_needs_no_files_once_the_server_has_them(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with engine(run_folder) as (fakes, client, reader):
            socket, header = fakes.raw(), encode(Generate(request_id="x", prompt=PROMPT, steps=1, pictures=("image",)))
            await socket.send(header)
            failed: Any = decode_reply(await socket.recv())
            assert (failed.code, failed.parameter) == ("invalid_parameter", "image")
            assert "came without its file" in failed.message
            await socket.send_multipart([header, FILE])
            await until(lambda: reader.begun)
            for frames in ([header, FILE], [header]):
                await socket.send_multipart(frames)
            await client.status()
            reader.go_on.set()
            assert isinstance(decode_reply(await socket.recv()), Accepted)
            assert reader.begun == [PROMPT]
            assert (await client.status()).dropped_messages == 0

    run(test())


def test_files_are_sent_again_until_something_is_heard_and_then_dropped(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PING_S", 0.02)
    monkeypatch.setattr(connection, "ASK_AGAIN_S", 0.02)
    sent: list[tuple[bytes, ...]] = []
    send = AsyncClient._send_frames

    def record(client: AsyncClient, *frames: bytes) -> None:
        if b"generate" in frames[0]:
            sent.append(frames[1:])
        send(client, *frames)

    monkeypatch.setattr(AsyncClient, "_send_frames", record)

    async def test() -> None:
        async with engine(run_folder) as (fakes, client, reader):
            fakes.ranks[0].hold = True
            call = await begun(client, reader)
            await until(lambda: len(sent) > 2)
            assert {*sent} == {(FILE,)}
            reader.go_on.set()
            await until(lambda: sent[-1] == ())
            assert all(call.files == () for call in client._calls)
            fakes.ranks[0].resume()
            assert (await call).seeds
            assert reader.begun == [PROMPT]

    run(test())


def test_files_are_compared_by_digests_of_another_thread(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    monkeypatch.setattr(encoding, "sha256", lambda data: threads.append(threading.current_thread()) or sha256(data))

    async def test() -> None:
        async with engine(run_folder) as (_, client, reader):
            reader.go_on.set()
            await client.generate(PROMPT, image=FILE, steps=1)
            assert not threads
            await client.generate(PROMPT, image=FILE, steps=1, idempotency_key="k")
            assert threads
            assert threading.current_thread() not in threads

    run(test())


def test_a_repetition_joins_while_the_picture_is_read_unless_the_picture_is_another(run_folder: Path) -> None:
    async def test() -> None:
        async with engine(run_folder) as (fakes, client, reader), AsyncClient(fakes.address) as other:
            first = await begun(client, reader, idempotency_key="k")
            again = asyncio.create_task(other.generate(PROMPT, image=FILE, steps=2, idempotency_key="k"))
            third = asyncio.create_task(
                other.generate(PROMPT, image=FILE, steps=2, idempotency_key="k", request_id="third")
            )
            with pytest.raises(IdempotencyConflictError):
                await other.generate(PROMPT, image=b"another", steps=2, idempotency_key="k")
            await until(lambda: sum(len(each.followers) for each in fakes.frontend._requests._arrivals) == 3)
            await other.cancel("third")
            with pytest.raises(CancelledError):
                await third
            reader.go_on.set()
            results = await asyncio.gather(first, again)
            assert results[0].seeds == results[1].seeds
            assert reader.begun == [PROMPT]
            assert (await other.generate(PROMPT, image=FILE, steps=2, idempotency_key="k")).seeds == results[0].seeds
            assert reader.begun == [PROMPT]

    run(test())


def test_what_can_be_refused_without_the_picture_is_refused_before_it_is_read(run_folder: Path) -> None:
    async def test() -> None:
        async with engine(run_folder, limits=Limits(max_queue=1)) as (_, client, reader):
            with pytest.raises(ArgumentError, match="steps must be between"):
                await client.generate(PROMPT, image=FILE, steps=1000)
            call = await begun(client, reader, request_id="edit")
            for pictures in ({}, {"image": FILE}):
                with pytest.raises(QueueFullError, match="the queue is full with 1 requests"):
                    await client.generate("another", **pictures)
            reader.go_on.set()
            assert (await call).seeds
            assert reader.begun == [PROMPT]

    run(test())


def test_pictures_are_held_once_in_bounded_memory_until_their_request_ends(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = 64 * 48 * 3
    monkeypatch.setattr(intake, "_MOST_PICTURE_BYTES", held + 100)

    async def test() -> None:
        async with engine(run_folder) as (fakes, client, reader):
            fakes.ranks[0].hold = True
            call = await begun(client, reader)
            with pytest.raises(QueueFullError, match="the pictures of other requests fill") as error:
                await client.generate("large", image=bytes(held + 100), steps=1)
            assert error.value.parameter == "image"
            reader.go_on.set()
            await fakes.ranks[0].has_steps(1)
            (request,) = fakes.frontend._requests._requests
            assert request.picture_size == held
            with pytest.raises(QueueFullError, match="the pictures of other requests fill"):
                await client.generate("small, and larger when it is read", image=FILE, steps=1)
            fakes.ranks[0].resume()
            assert (await call).seeds
            assert request.checked.picture is None
            assert (await client.generate("after it", image=FILE, steps=1)).seeds

    run(test())


def test_a_server_without_image_input_says_so(run_folder: Path) -> None:
    async def test() -> None:
        async with engine(run_folder, engine=EngineConfig(image_input=False)) as (_, client, reader):
            with pytest.raises(ArgumentError, match="start the server without --no-image-input") as error:
                await client.generate(PROMPT, image=FILE)
            assert (error.value.parameter, reader.begun) == ("image", [])

    run(test())
