"""The front-end against ranks that compute nothing."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from PIL import Image as PIL

from engine.errors import (
    ArgumentError,
    CancelledError,
    CheckpointError,
    Krea2Error,
    LaunchError,
    QueueFullError,
    RankError,
    RequestTimeoutError,
    ServerError,
)
from launcher.async_client import AsyncClient
from launcher.internal import lifeline_path
from launcher.limits import Limits
from launcher.protocol import (
    Accepted,
    Acknowledge,
    Cancel,
    Failed,
    Generate,
    Image,
    Ping,
    Pong,
    Status,
    StatusReply,
    decode_reply,
    encode,
)
from tests.launcher.fake_ranks import DEADLINE_S, FakeRank, fake_engine, run

PROMPT = "a red circle on a blue background"


def test_a_request_becomes_steps_for_every_rank_and_a_result_for_its_client(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder, tp=2) as fakes, AsyncClient(fakes.address) as client:
            result = await client.generate(PROMPT, seed=5, num_images=2, steps=3)
            assert fakes.ranks[0].steps == fakes.ranks[1].steps
            steps = fakes.ranks[0].steps
            assert [step.number for step in steps] == [0, 1, 2]
            assert [job.seed for job in steps[0].start] == [5, 6]
            assert all(len(step.denoise) == 2 for step in steps)
            assert (result.seed, result.seeds) == (5, [5, 6])
            assert (result.width, result.height, result.format) == (128, 128, "png")
            assert [image.getpixel((0, 0))[0] for image in result.images] == [5, 6]  # type: ignore[index]
            assert result.timings["denoise"] == pytest.approx(0.75)
            assert result.timings["encode_text"] == pytest.approx(0.5)
            assert result.timings["decode"] == pytest.approx(0.25)
            assert set(result.timings) == {"queue", "encode_text", "denoise", "decode", "file", "total"}
            assert result.warnings == ()

    run(test())


def test_two_steps_are_outstanding_and_never_more(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            rank = fakes.ranks[0]
            rank.hold = True
            call = asyncio.create_task(client.generate(PROMPT, steps=5))
            for answered in range(4):
                await rank.has_steps(answered + 2)
                await client.status()  # the front-end has had time for more
                assert len(rank.steps) == answered + 2
                rank.release()
            rank.release(2)
            assert (await call).seeds

    run(test())


def test_a_new_request_joins_at_most_two_ticks_after_it_arrived(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            rank = fakes.ranks[0]
            rank.hold = True
            first = asyncio.create_task(client.generate(PROMPT, steps=20))
            await rank.has_steps(2)
            second = asyncio.create_task(client.generate(PROMPT, steps=20, request_id="second"))
            while (await client.status()).waiting != 1:
                pass
            rank.release()
            steps = await rank.has_steps(3)
            assert len(steps[2].start) == 1
            assert len(steps[2].denoise) == 2
            for call in (first, second):
                call.cancel()

    run(test())


def test_a_cancel_is_answered_at_once_and_leaves_out_the_request_from_the_next_step(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            rank = fakes.ranks[0]
            rank.hold = True
            call = asyncio.create_task(client.generate(PROMPT, steps=5, request_id="mine"))
            await rank.has_steps(2)
            await client.cancel("mine")
            with pytest.raises(CancelledError, match="cancelled"):
                await call
            rank.release()
            steps = await rank.has_steps(3)
            assert steps[2].denoise == ()
            assert steps[2].release == (steps[0].start[0].job_id,)
            rank.hold = False
            rank.release(2)
            assert (await client.generate(PROMPT, steps=1)).seeds
            await client.cancel("mine")
            await client.cancel("never heard of")

    run(test())


def test_the_result_of_a_job_that_was_cancelled_in_its_last_step_is_dropped(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            rank = fakes.ranks[0]
            rank.hold = True
            call = asyncio.create_task(client.generate(PROMPT, steps=1, request_id="mine"))
            await rank.has_steps(1)
            await client.cancel("mine")
            with pytest.raises(CancelledError):
                await call
            rank.hold = False
            rank.release()
            assert (await client.generate(PROMPT, steps=1, seed=3)).seed == 3
            status = await client.status()
            assert (status.done, status.failed, status.running, status.waiting) == (1, 1, 0, 0)

    run(test())


def test_timeout_s_ends_a_request(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            fakes.ranks[0].hold = True
            with pytest.raises(RequestTimeoutError, match=r"timeout_s of 0\.1"):
                await client.generate(PROMPT, timeout_s=0.1)

    run(test())


def test_what_is_wrong_with_a_request_is_said_before_a_rank_hears_of_it(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            with pytest.raises(ArgumentError, match=r"^width must be between 64 and 4096, got 100000$") as error:
                await client.generate(PROMPT, width=100000)
            assert error.value.parameter == "width"
            with pytest.raises(ArgumentError, match=r"^steps must be a whole number or null, got text$") as error:
                await client.generate(PROMPT, steps="many")  # type: ignore[arg-type]
            assert error.value.parameter == "steps"
            with pytest.raises(ArgumentError, match=r"^num_images must be a whole number, got text$"):
                await client.generate(PROMPT, num_images="3")  # type: ignore[arg-type]
            with pytest.raises(ArgumentError, match=r"^prompt must be text, got a whole number$"):
                await client.generate(3)  # type: ignore[arg-type]
            with pytest.raises(ArgumentError, match="guidance must be between 0 and 20, got nan"):
                await client.generate(PROMPT, guidance=float("nan"))
            with pytest.raises(ArgumentError, match="a type that is not allowed"):
                await client.generate(PROMPT, seed=2**70)
            with pytest.raises(ArgumentError, match="lone surrogates"):
                await client.generate("\ud800")
            with pytest.raises(ArgumentError, match="prompt must be at most 16384 bytes"):
                await client.generate("x" * 20_000)
            with pytest.raises(ArgumentError, match="a request must be at most"):
                await client.generate("x" * 1_000_000)
            with pytest.raises(TypeError, match="stepz"):
                await client.generate(PROMPT, stepz=3)  # type: ignore[call-arg]
            assert fakes.ranks[0].steps == []

    run(test())


def test_warnings_say_what_was_changed(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            result = await client.generate(
                "red " * 600, width=100, height=128, negative_prompt="no " * 600, guidance=1.0
            )
            assert (result.width, result.height) == (112, 128)
            assert PIL.open(io.BytesIO(result.files[0])).size == (112, 128)
            assert len(result.warnings) == 3
            assert "rounded up to 112 × 128" in result.warnings[0]
            assert result.warnings[1] == "prompt was cut to 507 tokens"
            assert result.warnings[2] == "negative_prompt was cut to 507 tokens"

    run(test())


def test_a_full_queue_refuses_at_once(run_folder: Path) -> None:
    async def test() -> None:
        limits = Limits(max_queue=2)
        async with fake_engine(run_folder, limits=limits) as fakes, AsyncClient(fakes.address) as client:
            rank = fakes.ranks[0]
            rank.hold = True
            calls = [asyncio.create_task(client.generate(PROMPT, steps=2)) for _ in range(2)]
            await rank.has_steps(2)
            with pytest.raises(QueueFullError, match="full with 2 requests"):
                await client.generate(PROMPT)
            rank.hold = False
            rank.release(2)
            await asyncio.gather(*calls)
            assert (await client.generate(PROMPT)).seeds

    run(test())


def test_sending_a_request_twice_is_harmless_and_its_result_is_kept_until_acknowledged(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes:
            socket = fakes.raw()
            request = encode(Generate(request_id="twice", prompt=PROMPT, steps=2, seed=1))

            async def replies_until(kind: type) -> list[object]:
                replies: list[object] = []
                while not replies or not isinstance(replies[-1], kind):
                    replies.append(decode_reply((await socket.recv_multipart())[0]))
                return replies

            await socket.send(request)
            await socket.send(request)
            assert sum(isinstance(reply, Accepted) for reply in await replies_until(Image)) == 2
            await socket.send(request)
            assert len(await replies_until(Image)) == 1
            assert len(fakes.ranks[0].steps) == 2
            await socket.send(encode(Acknowledge(request_id="twice")))
            await socket.send(request)
            assert len(await replies_until(Image)) > 1
            assert len(fakes.ranks[0].steps) == 4

    run(test())


def test_a_client_that_falls_silent_loses_its_requests(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder, lease_s=0.2) as fakes, AsyncClient(fakes.address) as other:
            rank = fakes.ranks[0]
            rank.hold = True
            socket = fakes.raw()
            await socket.send(encode(Generate(request_id="x", prompt=PROMPT)))
            await rank.has_steps(2)
            while (await other.status()).running:
                pass
            assert (await other.status()).failed == 1

    run(test())


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
            assert "protocol version 1, the client sent version 99" in answer.message
            await socket.send(msgspec.msgpack.encode({"type": "generate", "request_id": "s", "prompt": [1]}))
            answer = await reply()
            assert isinstance(answer, Failed)
            assert (answer.request_id, answer.parameter) == ("s", "prompt")
            await socket.send_multipart([b"", b"", b""])
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
                await socket.send_multipart([bytes(frame)] * random.choice((1, 1, 1, 2)))
            await socket.send(encode(Status()))
            reply = None
            while not isinstance(reply, StatusReply):
                reply = decode_reply((await socket.recv_multipart())[0])
            assert reply.dropped_messages > 200
            assert (await client.generate(PROMPT, steps=1)).seeds
            assert not fakes.served.done()

    run(test())


def test_a_message_above_the_limit_ends_its_connection_and_nothing_else(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            socket = fakes.raw()
            await socket.send(b"x" * 10_000_000)
            assert (await client.generate(PROMPT, steps=1)).seeds

    run(test())


def test_status_says_what_the_engine_is_doing(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder, tp=2) as fakes, AsyncClient(fakes.address) as client:
            status = await client.status()
            assert isinstance(status, StatusReply)
            assert (status.model, status.tp, status.device, status.ready) == ("demo", 2, "fake", True)
            assert status.rank_memory == ({"weights": 1}, {"weights": 1})
            assert await client.ping() < DEADLINE_S

    run(test())


def test_a_later_request_is_told_its_place_and_the_time_until_it_is_done(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            first = await anext(client.stream(PROMPT))
            assert isinstance(first, Accepted)
            assert (first.position, first.estimated_s) == (0, None)
            await client.generate(PROMPT, steps=3)
            fakes.ranks[0].hold = True
            calls = [asyncio.create_task(client.generate(PROMPT, num_images=4)) for _ in range(2)]
            while (await client.status()).running + (await client.status()).waiting < 2:
                pass
            later = await anext(client.stream(PROMPT, num_images=5))
            assert isinstance(later, Accepted)
            assert later.position == 4  # the images of the second call; those of the first have begun
            assert later.estimated_s is not None
            assert later.estimated_s > 0
            for call in calls:
                call.cancel()

    run(test())


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (Krea2Error.code, "rank 0: RuntimeError: out of memory", RankError),
        (CheckpointError.code, "model.safetensors: is damaged", CheckpointError),
        (ArgumentError.code, "device cuda is not available", ArgumentError),
    ],
)
def test_a_rank_that_fails_ends_everything_with_its_own_error(
    run_folder: Path, code: str, message: str, kind: type[Krea2Error]
) -> None:
    async def test() -> None:
        async with fake_engine(run_folder, tp=2) as fakes, AsyncClient(fakes.address) as client:
            rank = fakes.ranks[0]
            rank.hold = True
            calls = [asyncio.create_task(client.generate(PROMPT)) for _ in range(3)]
            await rank.has_steps(2)
            rank.fail(code, message)
            for call in calls:
                with pytest.raises(kind, match=message):
                    await call
            with pytest.raises(kind, match=message):
                await fakes.served
            with pytest.raises(kind, match=message):  # the front-end has said goodbye
                await client.generate(PROMPT)

    run(test())


def test_a_complaint_about_a_lost_connection_gives_way_to_its_cause(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder, tp=2) as fakes, AsyncClient(fakes.address) as client:
            fakes.ranks[0].hold = True
            call = asyncio.create_task(client.generate(PROMPT))
            await fakes.ranks[0].has_steps(1)
            fakes.ranks[0].fail(Krea2Error.code, "rank 0: RuntimeError: connection closed by peer")
            fakes.ranks[1].fail(CheckpointError.code, "the cause")
            with pytest.raises(CheckpointError, match="the cause"):
                await call

    run(test())


def test_a_rank_that_does_not_finish_a_step_is_lost(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder, tp=2, step_timeout_s=0.3) as fakes, AsyncClient(fakes.address) as client:
            fakes.ranks[1].hold = True
            with pytest.raises(RankError, match=r"rank 1 did not finish step 0 within 0\.3 s"):
                await client.generate(PROMPT)

    run(test())


def test_an_image_that_is_never_decoded_makes_the_front_end_ask_and_then_give_up(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder, step_timeout_s=2.0) as fakes, AsyncClient(fakes.address) as client:
            rank = fakes.ranks[0]
            rank.decodes = False
            call = asyncio.create_task(client.generate(PROMPT, steps=1))
            steps = await rank.has_steps(2)  # at which a real rank whose decoder failed says so
            assert (steps[1].denoise, steps[1].number) == ((), 1)
            with pytest.raises(RankError, match="did not decode an image within 2 s"):
                await call

    run(test())


def test_ranks_that_never_come_are_a_launch_error(run_folder: Path) -> None:
    async def test() -> None:
        def silent(context: Any, folder: Path, rank: int, generation: int) -> FakeRank:
            return FakeRank(context, folder, rank, answer=rank == 0)

        with pytest.raises(LaunchError, match=r"rank 1 was not ready within 0\.3 s"):
            async with fake_engine(run_folder, tp=2, start_timeout_s=0.3, make_rank=silent):
                pass

    run(test())


def test_a_server_that_stops_says_so_to_those_who_wait(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            fakes.ranks[0].hold = True
            call = asyncio.create_task(client.generate(PROMPT))
            await fakes.ranks[0].has_steps(1)
            fakes.stop.set()
            with pytest.raises(ServerError, match="stopped"):
                await call

    run(test())


def test_cancel_of_another_client_s_request_does_nothing(run_folder: Path) -> None:
    async def test() -> None:
        async with (
            fake_engine(run_folder) as fakes,
            AsyncClient(fakes.address) as client,
            AsyncClient(fakes.address) as other,
        ):
            rank = fakes.ranks[0]
            rank.hold = True
            call = asyncio.create_task(client.generate(PROMPT, steps=1, request_id="mine"))
            await rank.has_steps(1)
            socket = fakes.raw()
            await socket.send(encode(Cancel(request_id="mine")))
            await other.cancel("mine")
            await other.status()
            rank.hold = False
            rank.release()
            assert (await call).request_id == "mine"

    run(test())


def test_what_does_not_fit_into_a_rank_s_memory_is_refused_and_ticks_are_packed_to_fit(run_folder: Path) -> None:
    async def test() -> None:
        def small(context: Any, folder: Path, rank: int, generation: int) -> FakeRank:
            return FakeRank(context, folder, rank, memory={"weights": 1, "free": 15_500_000 - 1000 * rank})

        async with (
            fake_engine(run_folder, tp=2, make_rank=small) as fakes,
            AsyncClient(fakes.address) as client,
        ):
            with pytest.raises(
                ArgumentError, match=r"1024 × 512 needs about \d\.\d GB on rank 0, which has 0\.0 GB free"
            ):
                await client.generate(PROMPT, width=1024, height=512)
            result = await client.generate(10 * PROMPT, guidance=1.0, num_images=10, steps=2)
            assert len(result.files) == 10
            sizes = [len(step.denoise) for step in fakes.ranks[0].steps]
            assert 1 < max(sizes) < 10

    run(test())


def test_a_rank_that_cannot_be_reached_because_it_died_is_said_to_have_died(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder, tp=2) as fakes, AsyncClient(fakes.address) as client:
            _, lifeline = await asyncio.open_unix_connection(lifeline_path(str(run_folder)))
            lifeline.write(bytes([1]))
            await lifeline.drain()
            fakes.ranks[1]._task.cancel()
            fakes.ranks[1]._socket.close(linger=0)
            await client.ping()  # by then the front-end's socket knows
            call = asyncio.create_task(client.generate(PROMPT))
            await fakes.ranks[0].has_steps(1)  # the same step has been sent to rank 1, in vain
            lifeline.close()
            with pytest.raises(RankError, match="rank 1 died"):
                await call
            with pytest.raises(RankError, match="rank 1 died"):
                await fakes.served

    run(test())
