"""A server whose filters are killed, stopped, late, out of memory or answer garbage while requests are in flight: each
is answered, what was not checked leaves only where that is wanted, and others' pictures are as they would be."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from engine.errors import FilterUnavailableError
from launcher.client.async_client import AsyncClient
from launcher.filters.gate import Gate
from launcher.filters.spec import read_specs
from tests.launcher.demo_server import Server
from tests.launcher.fake_ranks import fake_engine, run
from tests.launcher.filters.stand_in import FAULTS, HANG, IMAGES, STAND_IN
from tests.launcher.filters.ways_out.servers import served
from tests.launcher.http_servers import PATH, http_server
from tests.launcher.processes import PATIENCE_S, Marked, connect_async, temporary_folder

ENDLESS_S = 600.0
LATE_S = 24.0  # of a check, half of which is for its first try
ENDING = [fault for fault in FAULTS if fault not in HANG]
UNCHECKED = "content filter %s did not answer: this went unchecked"
ORDINARY = [*range(20, 28)]  # seeds


def filters_of(faults: Path, timeout_s: float) -> list[str]:
    common = f"faults={faults},timeout={timeout_s:g}"
    return [f"{STAND_IN},name=prompts,only=prompts,{common}", f"{IMAGES},name=images,only=images,{common}"]


@contextmanager
def filtered(timeout_s: float, *options: str) -> Iterator[tuple[Server, Marked]]:
    """A server with ranks that compute nothing, a filter of prompts and one of pictures."""
    with (
        temporary_folder() as faults,
        served(filters_of(Path(faults), timeout_s), *options, hollow=True) as (server, marked),
    ):
        yield server, marked


async def draw(client: AsyncClient, prompt: str, seed: int) -> tuple[str, ...]:
    """Returns warnings, or raises. The seed is how red ranks that compute nothing draw."""
    result = await client.generate(prompt, seed=seed, steps=2, width=64, height=64)
    assert (np.asarray(result.image)[..., 0] == seed).all()
    return result.warnings


async def draw_by_http(client: httpx.AsyncClient, prompt: str) -> httpx.Response:
    return await client.post(PATH, json={"prompt": prompt, "seed": 1, "steps": 2, "size": "64x64"})


async def outcome_of(drawing: Coroutine[Any, Any, tuple[str, ...]]) -> tuple[str, ...] | FilterUnavailableError:
    try:
        return await drawing
    except FilterUnavailableError as error:
        return error


def label_of(prompt: str) -> str:
    """The filter that fails over a prompt."""
    return "images" if prompt.startswith("image") else "prompts"


async def check_faults(
    server: Server, faults: Sequence[str], *, fails_open: bool, doors: Sequence[str] = ("rpc", "http")
) -> None:
    """Requests over which filters fail, of prompt or image, by RPC and HTTP, with others between them."""
    prompts = [prompt for fault in faults for prompt in (f"{fault} x", f"image {fault} x")]
    async with (
        connect_async(server.rpc) as rpc,
        httpx.AsyncClient(base_url=server.http, timeout=PATIENCE_S) as http,
        asyncio.timeout(PATIENCE_S),
    ):
        async with asyncio.TaskGroup() as group:
            others = [group.create_task(draw(rpc, "a cat", seed)) for seed in ORDINARY]
            asked = prompts if "http" in doors else []
            by_http = {prompt: group.create_task(draw_by_http(http, prompt)) for prompt in asked}
            asked = prompts if "rpc" in doors else []
            by_rpc = {prompt: group.create_task(outcome_of(draw(rpc, prompt, 9))) for prompt in asked}
        assert not any(("content filter" in warning) for other in others for warning in other.result())
        for prompt, task in by_rpc.items():
            outcome = task.result()
            if fails_open:
                assert not isinstance(outcome, FilterUnavailableError)
                assert UNCHECKED % label_of(prompt) in outcome
            else:
                assert isinstance(outcome, FilterUnavailableError), (prompt, outcome)
        for prompt, answered in by_http.items():
            answer = answered.result()
            if fails_open:
                assert UNCHECKED % label_of(prompt) in answer.json()["warnings"]
            else:
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "filter_unavailable")
                assert f"content filter {label_of(prompt)} did not answer" in answer.json()["error"]["message"]
                assert int(answer.headers["Retry-After"]) >= 1
        await draw(rpc, "a dog", 7)
        assert "filter" not in ((await rpc.status()).not_ready or "")


def test_filters_that_die_harm_nobody_else(run_folder: Path, tmp_path: Path) -> None:
    specs = read_specs(filters_of(tmp_path, ENDLESS_S))

    async def test() -> None:
        async with (
            fake_engine(run_folder, make_gate=lambda _: Gate(specs, fail_open=False)) as fakes,
            http_server(fakes.address) as http,
        ):
            server = Server(str(http.base_url), fakes.address)
            await check_faults(server, ["dies"], fails_open=False)

    run(test())


@pytest.mark.slow
@pytest.mark.parametrize("fails_open", [False, True])
def test_whatever_ends_a_check_each_request_is_answered(*, fails_open: bool) -> None:
    with filtered(ENDLESS_S, *(["--filter-fail-open"] if fails_open else [])) as (server, marked):
        asyncio.run(check_faults(server, ENDING, fails_open=fails_open))
        marked.wait_for("_filter", 2)


@pytest.mark.slow
@pytest.mark.parametrize("fails_open", [False, True])
def test_each_request_is_answered_where_filters_hang(*, fails_open: bool) -> None:
    with filtered(LATE_S, *(["--filter-fail-open"] if fails_open else [])) as (server, marked):
        for fault, door in zip(HANG, ("rpc", "http"), strict=True):
            asyncio.run(check_faults(server, [fault], fails_open=fails_open, doors=[door]))
        marked.wait_for("_filter", 2)
