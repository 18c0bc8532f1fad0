"""Many requests and many frames: everybody gets an answer, and nothing is kept."""

from __future__ import annotations

import asyncio
import pickle
import resource
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from subprocess import DEVNULL  # what nobody reads must not fill a pipe

import httpx
import pytest

from engine.errors import QueueFullError
from launcher.client.async_client import AsyncClient
from launcher.client.results import Result
from launcher.messages.client_messages import Generate
from launcher.messages.connections.open_files import raise_limit
from launcher.messages.encoding import encode
from launcher.messages.limits import Limits
from tests.launcher.fake_ranks import DEADLINE_S, fake_engine, run
from tests.launcher.processes import PATIENCE_S, Marked, connect, memory_of

PROMPT = "a red circle on a blue background"


def test_a_thousand_requests_at_once_against_a_queue_of_64_are_all_answered(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder, limits=Limits(max_queue=64)) as fakes, AsyncClient(fakes.address) as client:
            waits: list[float | None] = []

            async def ask(seed: int) -> str:
                try:
                    result = await client.generate(PROMPT, seed=seed, steps=2, width=64, height=64)
                except QueueFullError as error:
                    waits.append(error.retry_after_s)
                    return error.code
                assert isinstance(result, Result)
                assert result.seed == seed
                return "image"

            answers = Counter(await asyncio.gather(*(ask(seed) for seed in range(1000))))
            assert answers.keys() <= {"image", "queue_full"}
            assert answers.total() == 1000
            assert answers["image"] >= 64
            assert all(wait is None or wait >= 1 for wait in waits)
            status = await client.status()
            assert (status.waiting, status.running, status.done) == (0, 0, answers["image"])

    run(test())


class Bomb:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)


def test_ten_thousand_frames_of_noise_and_pickle_do_no_harm(run_folder: Path, tmp_path: Path) -> None:
    random = Random(7)
    bomb = tmp_path / "exploded"
    seeds = [
        encode(Generate(request_id="r", prompt=PROMPT)),
        *(pickle.dumps(Bomb(bomb), protocol=protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
        b"",
        b"\x81\xa4type\xa4ping",
    ]

    def mutate() -> list[bytes]:
        frames = []
        for _ in range(random.choice([1, 1, 1, 1, 2, 3])):
            frame = bytearray(random.choice([*seeds, random.randbytes(random.randint(0, 200))]))
            for _ in range(random.randint(0, 4)):
                if frame:
                    frame[random.randrange(len(frame))] = random.randrange(256)
            if random.random() < 0.2:
                del frame[random.randint(0, len(frame)) :]
            frames.append(bytes(frame))
        return frames

    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            sockets = [fakes.raw() for _ in range(4)]
            for index in range(10_000):
                await sockets[index % 4].send_multipart(mutate())
                if index % 1000 == 0:
                    assert await client.ping() >= 0
            async with asyncio.timeout(DEADLINE_S):
                while (await client.status()).dropped_messages < 7000:  # the rest happens to be understood
                    await asyncio.sleep(0.05)
            assert (await client.generate(PROMPT, seed=3, steps=1)).seed == 3
            assert not fakes.served.done()

    run(test())
    assert not bomb.exists()


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process have as many files open as it may."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    raise_limit()
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.slow
@pytest.mark.usefixtures("many_files")
def test_a_thousand_http_requests_at_once_each_get_an_image_or_a_429(marked: Marked) -> None:
    server = marked.start_krea2("serve", "--device", "cpu", "--port", "0", "--limit", "max_queue=64", stderr=DEVNULL)
    assert server.stdout is not None
    url = server.stdout.readline().strip().removeprefix("http: ")

    async def test() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, limits=limits) as client:

            async def ask(seed: int) -> int:
                body = {"prompt": PROMPT, "size": "64x64", "steps": 1, "seed": seed}
                answer = await client.post("/v1/images/generations", json=body)
                if answer.status_code == 429:
                    assert int(answer.headers["Retry-After"]) >= 1
                else:
                    assert answer.json()["seed"] == seed
                return answer.status_code

            answers = Counter(await asyncio.gather(*(ask(seed) for seed in range(1000))))
            assert answers.keys() <= {200, 429}
            assert answers.total() == 1000
            assert answers[200] >= 64

    asyncio.run(test())


@pytest.mark.slow
def test_memory_is_the_same_after_500_requests(marked: Marked) -> None:
    process = marked.start_krea2("serve", "--no-http", "--device", "cpu", stderr=DEVNULL)
    assert process.stdout is not None
    address = next(line for line in process.stdout if line.startswith("rpc: ")).removeprefix("rpc: ").strip()

    def memory() -> int:
        return sum(map(memory_of, marked.alive()))

    with connect(address) as client:

        def serve(count: int) -> None:
            async def all_of_them() -> None:
                await asyncio.gather(
                    *(
                        client.asynchronous.generate(PROMPT, seed=seed, steps=2, width=64 + 16 * (seed % 5), height=64)
                        for seed in range(count)
                    )
                )

            client.run(all_of_them())

        history = []
        for _ in range(9):
            serve(100)
            history.append(memory())
        print(history)
        assert min(history[-3:]) < 1.05 * max(history[1:4])
