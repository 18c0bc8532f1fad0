"""A request that is sent again with its idempotency key joins the first, or gets its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from engine.errors import CancelledError, IdempotencyConflictError, NotFiniteError, RequestTimeoutError
from launcher.client.async_client import NO_FILES, AsyncClient
from launcher.client.results import ImageFile, PreviewFile, Result
from launcher.frontend.admission import repeats
from launcher.frontend.admission.repeats import Repeatable, Repeats, digest_of
from launcher.messages.client_messages import Accepted, Generate, Progress
from launcher.messages.encoding import Files
from launcher.messages.own_clients import OwnClients
from tests.launcher.fake_ranks import DEADLINE_S, NOT_FINITE_SEED, Fakes, fake_engine, run
from tests.launcher.frontend.fake_clock import FakeClock

PROMPT = "a red circle on a blue background"
KEY = "order 7"


def asked(files: Mapping[str, bytes] = NO_FILES, **fields: Any) -> bytes:
    return digest_of(Generate(**{"request_id": "1", "prompt": PROMPT} | fields), Files(files))


# ---- what is known, and for how long


@pytest.fixture
def known() -> Repeats[str]:
    return Repeats()


def test_a_request_is_known_by_its_caller_its_key_and_what_it_asks_for(known: Repeats[str]) -> None:
    name = Repeatable("alice", KEY)
    assert known.find(name, asked()) is None
    known.begin(name, asked(), "first")
    assert known.find(name, asked(request_id="2", idempotency_key=KEY, caller="alice")) == "first"
    assert known.find(Repeatable("bob", KEY), asked()) is None
    for other in ({"prompt": "a fox"}, {"seed": 1}, {"timeout_s": 5.0}, {"preview_every": 2}, {"priority": 1}):
        with pytest.raises(IdempotencyConflictError, match="order 7"):
            known.find(name, asked(**other))


def test_the_bytes_of_pictures_are_part_of_what_is_asked_for_and_not_their_order() -> None:
    files = {"image": b"one", "mask": b"two"}
    assert asked(files) == asked(dict(reversed(files.items())))
    others = (
        {"image": b"one"},
        {"image": b"two", "mask": b"one"},
        {"image": b"onetwo"},
        {"image": b"one", "mask": b""},
    )
    assert len({asked(files), asked(), *map(asked, others)}) == 2 + len(others)


def test_an_answer_is_kept_for_a_while_and_a_failure_that_may_pass_is_not(known: Repeats[str]) -> None:
    for key, failed in (
        ("done", None),
        ("killed", "request_killed_ranks"),
        ("late", "timeout"),
        ("full", "queue_full"),
    ):
        name = Repeatable("alice", key)
        known.begin(name, asked(), key)
        known.end(name, 1000, failed, now=50.0)
    found = [key for key in ("done", "killed", "late", "full") if known.find(Repeatable("alice", key), asked())]
    assert found == ["done", "killed"]
    known.expire(50.0 + repeats.KEPT_S - 1)
    assert known.find(Repeatable("alice", "done"), asked())
    known.expire(50.0 + repeats.KEPT_S)
    assert not known.find(Repeatable("alice", "done"), asked())


@pytest.mark.parametrize(("bound", "most"), [("KEPT_BYTES", 3000), ("KEPT_ANSWERS", 3)])
def test_the_oldest_answers_go_first_and_what_runs_stays(
    known: Repeats[str], bound: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, bound, most)
    running = Repeatable("alice", "running")
    known.begin(running, asked(), "running")
    names = [Repeatable("alice", str(number)) for number in range(5)]
    for name in names:
        known.begin(name, asked(), name.key)
    for name in reversed(names):
        known.end(name, 1000, None, now=1.0)
    assert [name.key for name in names if known.find(name, asked())] == ["0", "1", "2"]
    assert known.find(running, asked()) == "running"


# ---- over RPC


async def until(fakes: Fakes, client: AsyncClient, **numbers: int) -> None:
    """Wait until the status says so."""
    while any([getattr(await client.status(), name) != number for name, number in numbers.items()]):
        await asyncio.sleep(0.01)


def test_a_repetition_joins_what_runs_and_both_get_all_of_it(run_folder: Path) -> None:
    async def test() -> None:
        async with (
            fake_engine(run_folder) as fakes,
            AsyncClient(fakes.address) as client,
            AsyncClient(fakes.address) as other,
        ):
            rank = fakes.ranks[0]
            rank.hold = True
            asked: Any = {"steps": 4, "num_images": 2, "preview_every": 2, "idempotency_key": KEY}
            first = asyncio.create_task(collect(client, **asked))
            await rank.has_steps(2)
            second = asyncio.create_task(collect(other, **asked))
            third = asyncio.create_task(collect(other, **asked))  # of the same client
            while b"krea2_repeated_requests_total 2.0" not in await client.metrics():
                await asyncio.sleep(0.01)
            rank.resume()
            events = await asyncio.gather(first, second, third)
            results = [each[-1] for each in events]
            assert all(isinstance(result, Result) for result in results)
            assert results[0].seeds == results[1].seeds == results[2].seeds
            assert results[0].files == results[1].files == results[2].files
            assert len({result.request_id for result in results}) == 3
            for each in events:
                assert {event.request_id for event in each} == {each[-1].request_id}
                assert {type(event) for event in each} == {Accepted, Progress, PreviewFile, ImageFile, Result}
            status = await client.status()
            assert (status.done, status.failed) == (1, 0)
            assert sum(len(step.start) for step in rank.steps) == 2

    run(test())


async def collect(client: AsyncClient, **parameters: Any) -> list[Any]:
    return [event async for event in client.stream(PROMPT, **parameters)]


def test_a_repetition_gets_the_answer_of_what_has_ended(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes:
            async with AsyncClient(fakes.address) as client:
                first = await client.generate(PROMPT, num_images=3, idempotency_key=KEY)
            async with AsyncClient(fakes.address) as client:  # another client, as after a restart of it
                steps = len(fakes.ranks[0].steps)
                for _ in range(2):
                    again = await client.generate(PROMPT, num_images=3, idempotency_key=KEY)
                    assert (again.files, again.seeds, again.timings) == (first.files, first.seeds, first.timings)
                assert len(fakes.ranks[0].steps) == steps
                other = await client.generate(PROMPT, num_images=3, idempotency_key="order 8")
                assert other.seeds != first.seeds
                with pytest.raises(IdempotencyConflictError):
                    await client.generate(PROMPT, num_images=2, idempotency_key=KEY)
                with pytest.raises(NotFiniteError):
                    await client.generate(PROMPT, seed=NOT_FINITE_SEED, idempotency_key="bad")
                steps = len(fakes.ranks[0].steps)
                with pytest.raises(NotFiniteError):
                    await client.generate(PROMPT, seed=NOT_FINITE_SEED, idempotency_key="bad")
                assert len(fakes.ranks[0].steps) == steps

    run(test())


def test_a_repetition_of_what_may_work_now_is_made(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch)

    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            fakes.ranks[0].hold = True
            asked: Any = {"steps": 1, "timeout_s": DEADLINE_S, "idempotency_key": KEY}
            call = asyncio.create_task(client.generate(PROMPT, **asked))
            await fakes.ranks[0].has_steps(1)
            await clock.pause()
            with pytest.raises(RequestTimeoutError):
                await call
            fakes.ranks[0].resume()
            assert (await client.generate(PROMPT, **asked)).seeds

    run(test())


def test_one_follower_that_cancels_or_hangs_up_leaves_the_others(run_folder: Path) -> None:
    async def test() -> None:
        own = OwnClients()  # whose silence is never taken for their end
        async with (
            fake_engine(run_folder, lease_s=0.5, own_clients=own) as fakes,
            AsyncClient(fakes.address, name=own.add()) as client,
            AsyncClient(fakes.address, name=own.add()) as watcher,
        ):
            rank = fakes.ranks[0]
            rank.hold = True
            vanishing = await fakes.client()
            asked: Any = {"steps": 4, "idempotency_key": KEY}
            first = asyncio.create_task(vanishing.generate(PROMPT, **asked))
            await rank.has_steps(2)
            second = asyncio.create_task(client.generate(PROMPT, request_id="second", **asked))
            third = asyncio.create_task(client.generate(PROMPT, **asked))
            while b"krea2_repeated_requests_total 2.0" not in await watcher.metrics():
                await asyncio.sleep(0.01)
            await client.cancel("second")
            with pytest.raises(CancelledError):
                await second
            vanishing._context.destroy(linger=0)  # type: ignore[union-attr]
            async with asyncio.timeout(DEADLINE_S):
                while vanishing._name in fakes.frontend._clients._last_heard:
                    await asyncio.sleep(0.01)
            first.cancel()
            rank.resume()
            assert (await third).seeds
            assert (await watcher.status()).failed == 0

    run(test())


def test_what_nobody_follows_any_more_ends(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            fakes.ranks[0].hold = True
            call = asyncio.create_task(client.generate(PROMPT, steps=4, idempotency_key=KEY, request_id="mine"))
            await fakes.ranks[0].has_steps(2)
            await client.cancel("mine")  # which is asked for, so nothing waits for a repetition
            with pytest.raises(CancelledError):
                await call
            await until(fakes, client, running=0, waiting=0, failed=1)
            fakes.ranks[0].resume()
            assert (await client.generate(PROMPT, steps=4, idempotency_key=KEY)).seeds

    run(test())


def test_a_repetition_joins_a_request_that_starts_over(run_folder: Path) -> None:
    async def test() -> None:
        async with (
            fake_engine(run_folder, replace_ranks=True) as fakes,
            AsyncClient(fakes.address) as client,
            AsyncClient(fakes.address) as other,
        ):
            fakes.ranks[0].hold = True
            first = asyncio.create_task(client.generate(PROMPT, steps=3, idempotency_key=KEY))
            await fakes.ranks[0].has_steps(2)
            fakes.ranks[0].fail("rank_failed", "planted")
            second = asyncio.create_task(other.generate(PROMPT, steps=3, idempotency_key=KEY))
            results = await asyncio.gather(first, second)
            assert results[0].files == results[1].files
            assert {result.attempt for result in results} == {2}

    run(test())
