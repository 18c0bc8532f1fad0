"""`Idempotency-Key` over HTTP, with two HTTP processes in front of one front-end."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from launcher.client.async_client import AsyncClient
from launcher.frontend import live_requests
from launcher.messages.own_clients import OwnClients
from tests.launcher.fake_ranks import Fakes, fake_engine, run
from tests.launcher.frontend.fake_clock import FakeClock
from tests.launcher.http.http_requests import error_of
from tests.launcher.http_servers import PATH, PROMPT, events_of, http_server

BODY = {"prompt": PROMPT, "steps": 4, "n": 2}
KEY = {"Idempotency-Key": "order 7"}


@asynccontextmanager
async def two_servers(run_folder: Path) -> AsyncIterator[tuple[Fakes, httpx.AsyncClient, httpx.AsyncClient]]:
    own = OwnClients()
    async with (
        fake_engine(run_folder, own_clients=own) as fakes,
        http_server(fakes.address, client_name=own.add()) as first,
        http_server(fakes.address, client_name=own.add()) as second,
    ):
        yield fakes, first, second


async def repeated(fakes: Fakes, times: int) -> None:
    """Wait until so many requests have been found to be repetitions."""
    async with AsyncClient(fakes.address) as rpc:
        while _count(await rpc.metrics()) < times:
            await asyncio.sleep(0.01)


def _count(metrics: bytes) -> float:
    (line,) = (line for line in metrics.decode().splitlines() if line.startswith("krea2_repeated_requests_total "))
    return float(line.rpartition(" ")[2])


def pictures(answer: httpx.Response) -> list[bytes]:
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(image["b64_json"]) for image in answer.json()["data"]]


def test_a_repetition_joins_the_first_or_gets_its_answer_at_whichever_process(run_folder: Path) -> None:
    async def test() -> None:
        async with two_servers(run_folder) as (fakes, first, second):
            rank = fakes.ranks[0]
            rank.hold = True
            calls = [asyncio.create_task(first.post(PATH, json=BODY, headers=KEY))]
            await rank.has_steps(2)
            stream = {**BODY, "stream": True}
            calls += [asyncio.create_task(second.post(PATH, json=body, headers=KEY)) for body in (BODY, stream)]
            await repeated(fakes, 2)
            rank.resume()
            answers = await asyncio.gather(*calls)
            assert pictures(answers[0]) == pictures(answers[1])
            assert all("idempotent-replayed" not in answer.headers for answer in answers)
            completed = [data for name, data in events_of(answers[2].text) if name.endswith("completed")]
            streamed = {data["index"]: base64.b64decode(data["b64_json"]) for data in completed}
            assert [streamed[index] for index in range(2)] == pictures(answers[0])

            steps = len(rank.steps)
            for server in (first, second):
                again = await server.post(PATH, json=BODY, headers=KEY)
                assert again.headers["idempotent-replayed"] == "true"
                assert pictures(again) == pictures(answers[0])
                assert again.json()["request_id"] == again.headers["x-request-id"]
                links = (await server.post(PATH, json={**BODY, "response_format": "url"}, headers=KEY)).json()["data"]
                assert [(await server.get(link["url"])).content for link in links] == pictures(answers[0])
                events = events_of((await server.post(PATH, json=stream, headers=KEY)).text)
                assert [name.rpartition(".")[2] for name, _ in events] == ["completed", "completed"]
            assert len(rank.steps) == steps
            other = await second.post(PATH, json={**BODY, "n": 1}, headers=KEY)
            assert (other.status_code, error_of(other)["code"]) == (422, "idempotency_conflict")
            assert len(pictures(await second.post(PATH, json={**BODY, "n": 1}))) == 1

    run(test())


def test_a_hang_up_ends_a_request_only_if_nobody_asks_for_it_again(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang_up(fakes: Fakes, server: httpx.AsyncClient, headers: dict[str, str], steps: int) -> None:
        call = asyncio.create_task(server.post(PATH, json=BODY, headers=headers))
        await fakes.ranks[0].has_steps(steps)
        call.cancel()

    async def test() -> None:
        async with two_servers(run_folder) as (fakes, first, second), AsyncClient(fakes.address) as rpc:
            rank = fakes.ranks[0]
            rank.hold = True
            await hang_up(fakes, first, KEY, 2)
            again = asyncio.create_task(second.post(PATH, json=BODY, headers=KEY))
            await repeated(fakes, 1)
            rank.resume()
            assert len(pictures(await again)) == 2
            assert sum(len(step.start) for step in rank.steps) == 2

            monkeypatch.setattr(live_requests, "_LINGER_S", 0.1)
            rank.hold = True
            await hang_up(fakes, first, {"Idempotency-Key": "8"}, len(rank.steps) + 2)
            while (await rpc.status()).failed != 1:
                await asyncio.sleep(0.01)
            assert b'krea2_requests_total{outcome="cancelled"} 1.0' in await rpc.metrics()

    run(test())


def test_a_request_lingers_from_the_last_hang_up_on(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_requests, "_LINGER_S", 50.0)
    clock = FakeClock(monkeypatch)

    async def test() -> None:
        async with two_servers(run_folder) as (fakes, first, _), AsyncClient(fakes.address) as rpc:
            fakes.ranks[0].hold = True
            for repeats in (0, 1):
                call = asyncio.create_task(first.post(PATH, json=BODY, headers=KEY))
                await fakes.ranks[0].has_steps(2)
                await repeated(fakes, repeats)
                (request,) = fakes.frontend._requests._requests
                call.cancel()
                while request.followers:  # until the front-end has heard of it
                    await asyncio.sleep(0.01)
                await clock.forward(30.0)
            assert (await rpc.status()).failed == 0  # 60 s after the first hang-up
            await clock.forward(30.0)
            assert (await rpc.status()).failed == 1

    run(test())


@pytest.mark.parametrize("key", ["", "x" * 256, "schlüssel".encode("latin-1"), b"tab\there"])
def test_a_key_that_cannot_be_one_is_an_error(run_folder: Path, key: Any) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, http_server(fakes.address) as client:
            answer = await client.post(PATH, json=BODY, headers={"Idempotency-Key": key})
            assert (answer.status_code, error_of(answer)["param"]) == (400, "Idempotency-Key"), answer.text
            assert "1 to 255 printable ASCII characters" in error_of(answer)["message"]
            assert fakes.ranks[0].steps == []
            assert "<code>Idempotency-Key</code>" in (await client.get("/docs")).text

    run(test())


def test_openai_s_client_may_send_one_and_keeps_it_when_it_tries_again(run_folder: Path) -> None:
    async def test() -> None:
        async with two_servers(run_folder) as (fakes, first, _):
            client = openai.AsyncOpenAI(api_key="none", base_url=f"{first.base_url}/v1", timeout=1.0, max_retries=20)
            client._idempotency_header = "Idempotency-Key"  # which makes it send keys of its own
            fakes.ranks[0].hold = True
            call = asyncio.create_task(client.images.generate(prompt=PROMPT))
            await repeated(fakes, 1)  # it has given up, and tried again with the same key
            fakes.ranks[0].resume()
            made = await call
            assert made.data
            assert sum(len(step.start) for step in fakes.ranks[0].steps) == 1
            headers = {"Idempotency-Key": "own"}
            images = [await client.images.generate(prompt=PROMPT, extra_headers=headers) for _ in range(2)]
            assert images[0].data == images[1].data
            await client.close()

    run(test())
