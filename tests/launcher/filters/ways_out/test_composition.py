"""Filters beside whatever else a server does: batches, LoRAs, several ranks, ranks that die."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import ModerationBlockedError
from launcher.client.async_client import AsyncClient
from launcher.client.results import PreviewFile, Result
from launcher.messages.client_messages import Progress
from tests.launcher.filters.ways_out.planted import BLOCKED_FROM, FORBIDDEN, PLANTED, WORD, redness_of, seen_in
from tests.launcher.filters.ways_out.servers import served
from tests.launcher.filters.ways_out.ways import Ask
from tests.launcher.processes import PATIENCE_S, connect_async

OVER = Ask("", 0, 0, 96)
REQUESTS: list[dict[str, Any]] = [
    {"prompt": f"a {shape} on a {ground} background", "seed": seed, "steps": steps, "width": side, "height": side}
    | more
    for seed, (shape, ground, steps, side, more) in enumerate(
        [
            ("white circle", "red", 6, 96, {}),
            ("black star", "blue", 9, 128, {"preview_every": 1}),
            ("red heart", "green", 4, 96, {"num_images": 2, "loras": [{"name": "demo-outlined", "strength": 0.8}]}),
            ("pink ring", "red", 8, 112, {"preview_every": 2, "num_images": 2}),
            ("white cross", "white", 5, 96, {"image": OVER.picture, "strength": 0.7}),
            ("blue square", "red", 5, 96, {"image": OVER.picture, "mask": OVER.around}),
            (
                "gray diamond",
                "black",
                12,
                96,
                {"loras": [{"name": "demo-outlined", "strength": 1.0}], "preview_every": 3},
            ),
            ("white circle", "red", 7, 96, {"loras": [{"name": "demo-outlined", "strength": 0.5}]}),
        ]
    )
]
MODES = {"one rank": (), "tp": ("--tp", "2")}
LORA = ("--lora", "demo-outlined")


async def draw_alone(rpc: str) -> list[list[np.ndarray[Any, Any]]]:
    async with connect_async(rpc) as client:
        results = [await client.generate(**request) for request in REQUESTS]
    return [[np.asarray(image, int) for image in result.images] for result in results]


async def draw_at_once(client: AsyncClient, under_way: asyncio.Event) -> list[Result | ModerationBlockedError]:
    """Draw all, with one more that has the forbidden word."""

    async def follow(request: dict[str, Any]) -> Result | ModerationBlockedError:
        try:
            async for event in client.stream(**request):
                if isinstance(event, Progress):
                    under_way.set()
                elif isinstance(event, PreviewFile):
                    assert redness_of(np.asarray(event.image)) < BLOCKED_FROM + 0.1  # what JPEG changes
                elif isinstance(event, Result):
                    return event
        except ModerationBlockedError as error:
            return error
        raise AssertionError

    forbidden, *outcomes = await asyncio.gather(
        *(follow(request) for request in [{"prompt": FORBIDDEN, "steps": 30}, *REQUESTS])
    )
    assert isinstance(forbidden, ModerationBlockedError)
    return outcomes


def check(outcomes: list[Result | ModerationBlockedError], alone: list[list[np.ndarray[Any, Any]]]) -> None:
    """What is blocked has no picture; every other one is as it was, drawn alone without filters."""
    for outcome, images in zip(outcomes, alone, strict=True):
        if any(redness_of(image) >= BLOCKED_FROM for image in images):
            assert isinstance(outcome, ModerationBlockedError)
            assert outcome.category == "red"
        else:
            assert isinstance(outcome, Result)
            for image, other in zip(outcome.images, images, strict=True):
                assert np.abs(np.asarray(image, int) - other).max() <= 1
    assert sum(isinstance(outcome, ModerationBlockedError) for outcome in outcomes) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_mixed_batch_is_as_each_alone_also_when_a_rank_dies(mode: str, tmp_path: Path) -> None:
    with served((), *LORA, *MODES[mode]) as (server, _):
        alone = asyncio.run(draw_alone(server.rpc))

    async def test() -> None:
        with served([WORD, f"{PLANTED},seen={tmp_path}"], *LORA, *MODES[mode]) as (server, marked):
            async with connect_async(server.rpc) as client, asyncio.timeout(PATIENCE_S):
                check(await draw_at_once(client, asyncio.Event()), alone)
                under_way = asyncio.Event()
                drawn = asyncio.create_task(draw_at_once(client, under_way))
                await under_way.wait()
                marked.rank(0).kill()
                outcomes = await drawn
                check(outcomes, alone)
                assert (await client.status()).restarts == 1
                assert len(marked.alive("_filter")) == 2
                check(await draw_at_once(client, asyncio.Event()), alone)

    asyncio.run(test())
    assert {each.kind for each in seen_in(tmp_path)} == {"image", "preview", "upload"}
