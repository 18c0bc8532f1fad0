"""Requests whose steps are saved, from a client through the ranks and back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from engine.config.model_config import ModelConfig
from launcher import Client
from launcher.client.async_client import AsyncClient
from launcher.messages.message_parts import Computed
from launcher.requests.image_metadata import read_made
from tests.launcher.fake_ranks import DEADLINE_S, fake_engine, run
from tests.launcher.frontend.late_rank import LateRank

PROMPT = "a red circle on a blue background"
SAVES: Any = {"steps": 6, "cache": {"method": "velocity", "warmup_steps": 2, "max_consecutive": 1}}


def test_each_image_says_which_of_its_steps_were_computed(client: Client, demo: ModelConfig) -> None:
    blocks = demo.transformer.num_layers
    cache = {"method": "velocity", "warmup_steps": 2, "max_consecutive": 1}
    result = client.generate(PROMPT, seed=5, num_images=2, cache=cache)
    computed = Computed(steps=tuple((blocks * whole,) for whole in (1, 1, 0, 1, 0, 1, 0, 1)), blocks=blocks)
    assert result.computed == [computed, computed]
    assert result.warnings == ()
    for image in result.images:
        made = read_made(image)
        assert made is not None
        assert made["cache"] == {**cache, "order": 1, "max_cached": 200}
        assert made["computed"] == {"prompt": "1-2,4,6,8", "block_evaluations": f"{5 * blocks} of {8 * blocks}"}


def test_images_of_which_all_is_computed_say_nothing_of_it(client: Client) -> None:
    whole = client.generate(PROMPT, seed=5, steps=2, cache="off", guidance_until=0.5)
    assert whole.computed == [None]
    assert whole.warnings == (
        "guidance_from and guidance_until were ignored: guidance is 0, so that there is none to leave out",
    )
    made = read_made(whole.image)
    assert made is not None
    assert made.keys().isdisjoint({"cache", "computed", "guidance_until"})
    assert client.generate(PROMPT, seed=5, steps=2).files == whole.files


@pytest.mark.parametrize("outside", ["off", "last"])
def test_the_negative_prompt_is_left_out_outside_the_window(client: Client, demo: ModelConfig, outside: str) -> None:
    blocks = demo.transformer.num_layers
    result = client.generate(
        PROMPT, seed=5, steps=4, guidance=1.0, guidance_from=0.25, guidance_until=0.75, guidance_outside=outside
    )
    steps = ((blocks, 0), (blocks, blocks), (blocks, blocks), (blocks, 0))
    assert result.computed == [Computed(steps=steps, blocks=blocks)]


def saved(blocks: int) -> Computed:
    """What `SAVES` computes."""
    return Computed(steps=tuple((blocks * whole,) for whole in (1, 1, 0, 1, 0, 1)), blocks=blocks)


def test_a_request_that_starts_over_counts_its_steps_anew(run_folder: Path, demo: ModelConfig) -> None:
    async def test() -> None:
        engine = fake_engine(run_folder, tp=2, replace_ranks=True)
        async with engine as fakes, AsyncClient(fakes.address) as client:
            for rank in fakes.ranks:
                rank.hold = True
            call = asyncio.create_task(client.generate(PROMPT, **SAVES))
            for rank in fakes.ranks:
                await rank.has_steps(2)
                rank.release(2)
            await fakes.ranks[0].has_steps(4)  # so that two are known
            fakes.ranks[0].fail("rank_failed", "rank 1: lost")
            result = await call
            assert result.attempt == 2
            assert result.computed == [saved(demo.transformer.num_layers)]

    run(test())


@pytest.mark.parametrize("end", ["told", "lost"])
def test_an_image_waits_for_its_last_step_to_be_known_but_not_for_lost_ranks(
    run_folder: Path, demo: ModelConfig, end: str
) -> None:
    async def test() -> None:
        engine = fake_engine(run_folder, tp=2, make_rank=LateRank, replace_ranks=True)
        async with engine as fakes, AsyncClient(fakes.address) as client:
            call = asyncio.create_task(client.generate(PROMPT, **SAVES))
            await fakes.ranks[1].has_steps(6)
            async with asyncio.timeout(DEADLINE_S):
                (request,) = fakes.frontend._requests._requests
                while not request.decoded:
                    await asyncio.sleep(0.01)
            assert not call.done()
            if end == "told":
                fakes.ranks[1].answer_late(fakes.ranks[1].steps[5])
            else:
                fakes.ranks[0].fail("rank_failed", "rank 1: lost")
            assert (await call).computed == [saved(demo.transformer.num_layers) if end == "told" else None]

    run(test())
