"""Whether a request is let in goes by the dtype in which rank 0 decodes, which may be wider than the model's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError
from engine.pictures.pixels import Pixels
from engine.planning.step_memory import (
    DecodeMemory,
    batch_bytes,
    decode_bytes,
    encode_bytes,
    packed_bytes,
    picture_encode_bytes,
)
from engine.step_cache.settings import StepCache
from launcher.messages.client_messages import Generate
from launcher.messages.limits import Limits
from launcher.pictures.prepared import PreparedPicture
from launcher.requests.check import CheckedRequest, check
from launcher.requests.plan import Plan
from launcher.requests.rank_memory import RankMemory

DEMO = ModelConfig.from_folder(DEMO_CHECKPOINT)
ENGINE = EngineConfig(dtype="bfloat16")
TOKENS = DEMO.image_tokens(1024, 1024) + 20


@pytest.mark.parametrize("element", [2, 4])
def test_a_request_is_let_in_where_its_step_and_its_decoding_fit(element: int) -> None:
    size = {"width": 1024, "height": 1024}
    request = check(Generate(request_id="r", prompt="a fox", **size), DEMO, Limits(), drawn_seed=0)
    step = max(batch_bytes(DEMO, [TOKENS], ENGINE.degrees, 2), encode_bytes(DEMO, 1, 2))
    enough = step + decode_bytes(DEMO, 1024, 1024, element)

    def let_in(free: int) -> None:
        RankMemory(DEMO, ENGINE, "cpu", (free,), DecodeMemory(element)).check(Plan((), (TOKENS,), ()), request)

    let_in(enough)
    with pytest.raises(ArgumentError, match="1024 × 1024 needs about"):
        let_in(enough - 1)


def test_a_picture_is_let_in_where_it_can_be_encoded_beside_a_decoding_and_the_error_names_it() -> None:
    plain = check(Generate(request_id="r", prompt="a fox", width=1024, height=1024), DEMO, Limits(), drawn_seed=0)
    request = replace(plain, picture=PreparedPicture((1024, 1024), Pixels(1024, 1024, b"")))
    plan = Plan((), (TOKENS,), ())
    encode, decode = picture_encode_bytes(DEMO, 1024, 1024, 4), decode_bytes(DEMO, 1024, 1024, 4)
    stepping = batch_bytes(DEMO, [TOKENS], ENGINE.degrees, 2)
    assert encode > stepping

    def memory(*free: int, **options: int) -> RankMemory:
        return RankMemory(DEMO, replace(ENGINE, tp=len(free), **options), "cpu", free, DecodeMemory(4))

    memory(encode + decode).check(plan, request)
    memory(encode + decode - 1).check(plan, plain)
    with pytest.raises(ArgumentError, match="image, to be encoded as 1024 × 1024, needs about") as error:
        memory(encode + decode - 1).check(plan, request)
    assert error.value.parameter == "image"
    with pytest.raises(ArgumentError, match=r"1024 × 1024 needs about .*: give a smaller size"):
        memory(stepping).check(plan, request)
    memory(encode + decode, max(encode, decode)).check(plan, request)  # which share it
    tiled = RankMemory(DEMO, ENGINE, "cpu", (10**12,), DecodeMemory(4, limit=encode // 4))
    assert tiled.needed((TOKENS,), (1024, 1024), pictured=True)[0] < encode + decode


def test_images_of_wider_elements_leave_less_to_loras_and_to_tokens() -> None:
    narrow, wide = (RankMemory(DEMO, ENGINE, "cpu", (10**9,), DecodeMemory(element)) for element in (2, 4))
    more = decode_bytes(DEMO, 128, 128, 4) - decode_bytes(DEMO, 128, 128, 2)
    (less,), (needed,) = narrow.needed_by_default(), wide.needed_by_default()
    assert needed == less + more
    assert wide.token_budget(10**9) < narrow.token_budget(10**9)


GUIDED = (TOKENS, TOKENS - 5)
BLOCKS = StepCache("blocks", warmup_steps=8, max_consecutive=2, order=1, max_cached=200)
VELOCITY = replace(BLOCKS, method="velocity")


def saving(cache: StepCache | None, **changes: Any) -> CheckedRequest:
    plain = check(Generate(request_id="r", prompt="a fox", width=1024, height=1024), DEMO, Limits(), drawn_seed=0)
    return replace(plain, cache=cache, **changes)


def test_a_cache_is_let_in_where_what_it_keeps_fits_beside_the_image_and_the_error_names_it() -> None:
    plan, plain = Plan((), GUIDED, ()), saving(None)
    memory = RankMemory(DEMO, ENGINE, "cpu", (10**12,), DecodeMemory(4))
    without = memory.needed(GUIDED, (1024, 1024))[0]
    held = {cache.method: memory.cache_bytes(saving(cache), GUIDED) for cache in (BLOCKS, VELOCITY)}
    rows = sum(GUIDED) * DEMO.transformer.hidden_size * 2
    assert held["blocks"] >= 3 * rows  # what the first blocks and those after them add, the latter twice
    velocity = DEMO.image_tokens(1024, 1024) * DEMO.transformer.in_channels * 4
    assert 2 * 2 * velocity <= held["velocity"] <= 3 * 2 * velocity
    assert memory.cache_bytes(plain, GUIDED) == 0
    assert memory.cache_bytes(saving(None, guidance_window=(0, 0.5), guidance_outside="last"), GUIDED) == 2 * velocity
    assert memory.cache_bytes(saving(None, guidance_window=(0, 0.5), guidance_outside="last"), (TOKENS,)) == 0
    for cache in (BLOCKS, VELOCITY):
        enough = without + held[cache.method]
        replace(memory, free=(enough,)).check(plan, saving(cache))
        replace(memory, free=(enough - 1,)).check(plan, plain)
        with pytest.raises(ArgumentError, match="cache, for an image of 1024 × 1024, needs about") as error:
            replace(memory, free=(enough - 1,)).check(plan, saving(cache))
        assert error.value.parameter == "cache"
    reusing = saving(None, guidance_window=(0, 0.5), guidance_outside="last")
    with pytest.raises(ArgumentError, match=r"guidance_outside, for an image of .*: without it there is enough"):
        replace(memory, free=(without + velocity,)).check(plan, reusing)
    with pytest.raises(ArgumentError) as error:
        replace(memory, free=(without - 1,)).check(plan, saving(BLOCKS))
    assert error.value.parameter == "width"
    replace(memory, free=(without,)).check(plan, saving(BLOCKS, steps=0))  # a picture that is only encoded


def test_images_may_keep_what_a_full_step_and_a_decoding_leave() -> None:
    memory = RankMemory(DEMO, ENGINE, "cpu", (10**9,), DecodeMemory(4))
    assert replace(memory, free=None).state_room(8192) is None
    room = memory.state_room(8192)
    assert room is not None
    beside = decode_bytes(DEMO, 128, 128, 4) + packed_bytes(DEMO, 8192, ENGINE.degrees, 2)
    assert room.bytes == 10**9 - beside
    full = memory.state_room(memory.token_budget(10**9))
    assert full is not None
    assert full.bytes < 2 * full.token_bytes  # steps may take all there is
    least = replace(memory, free=(beside - 1,)).state_room(8192)
    assert least is not None
    assert least.bytes == 0
