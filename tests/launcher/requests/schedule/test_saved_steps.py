"""Which steps a request lets be saved, and in which its images are guided."""

from __future__ import annotations

import itertools
from dataclasses import asdict, fields, replace
from typing import Any

import msgspec
import pytest

from engine.config.degrees import Degrees
from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError
from engine.step_cache.settings import PRESETS, StepCache
from engine.step_cache.step_plan import plan_of
from launcher.messages.client_messages import Generate
from launcher.messages.encoding import MessageError, decode_request, encode_request
from launcher.messages.limits import Limits
from launcher.messages.message_parts import CacheChoice
from launcher.parameters.values import CACHE_FIELDS
from launcher.requests.check import CheckedRequest, check
from launcher.requests.plan import make_plan
from launcher.requests.schedule.described import describe_cache
from launcher.requests.schedule.saved_steps import check_shared, warn_of_nothing_saved
from launcher.requests.tokenizer import Prompt

TURBO = ModelConfig.from_folder(DEMO_CHECKPOINT)
RAW = replace(TURBO, is_distilled=False)
BLOCKS = TURBO.transformer.num_layers


def checked(model: ModelConfig = RAW, **parameters: Any) -> CheckedRequest:
    request = Generate(request_id="r", prompt="a red circle", **parameters)
    over_the_wire = decode_request(encode_request(request))
    assert over_the_wire == request
    return check(request, model, Limits(), drawn_seed=77)


def test_a_request_that_says_nothing_has_jobs_as_ever() -> None:
    request = checked()
    assert (request.cache, request.guidance_window, request.guidance_outside) == (None, (0.0, 1.0), "off")
    assert request.warnings == ()
    plan = make_plan(request, RAW, lambda _: Prompt((1,) * 40, cut=False), itertools.count(), {})
    assert plan_of(plan.jobs[0]) is None
    sent = msgspec.msgpack.decode(encode_request(Generate(request_id="r", prompt="x")))
    assert sent.keys() == {"type", "version", "request_id", "prompt"}  # as older servers know it


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_known_by_their_names(name: str) -> None:
    request = checked(cache=name)
    assert request.cache == PRESETS[name]
    assert request.warnings == ()
    assert describe_cache(PRESETS[name]) == name
    plan = make_plan(request, RAW, lambda _: Prompt((1,) * 40, cut=False), itertools.count(), {})
    assert (plan.jobs[0].cache, plan.blocks) == (PRESETS[name], BLOCKS)


def test_every_setting_can_be_asked_for_at_every_door() -> None:
    assert {*CacheChoice.__struct_fields__} == {*CACHE_FIELDS} == {field.name for field in fields(StepCache)}


def test_fields_that_are_not_given_have_defaults() -> None:
    assert checked(cache=CacheChoice()).cache == StepCache("blocks", 8, 2, 1, 200, 1, 0, 0.12)
    assert checked(cache=CacheChoice(method="velocity", warmup_steps=4)).cache == StepCache("velocity", 4, 2, 1, 200)
    everything = StepCache("blocks", 3, 1, 0, 9, 2, 1, 0.5)
    assert checked(cache=CacheChoice(**asdict(everything))).cache == everything


@pytest.mark.parametrize("choice", [CacheChoice(threshold=0.3), CacheChoice(method="velocity", order=0)])
def test_what_is_told_of_settings_asks_for_them(choice: CacheChoice) -> None:
    cache = checked(cache=choice).cache
    assert cache is not None
    told = describe_cache(cache)
    assert isinstance(told, dict)
    assert checked(cache=CacheChoice.of(told)).cache == cache


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        ("slow", "cache must be one of off, quality, fast, or its fields, got 'slow'"),
        ({"method": "dbcache"}, "cache.method must be one of blocks, velocity, got 'dbcache'"),
        ({"method": "velocity", "threshold": 0.1}, "cache.threshold is of method blocks, not of velocity"),
        ({"method": "velocity", "first_blocks": 1}, "cache.first_blocks is of method blocks, not of velocity"),
        ({"warmup_steps": -1}, "cache.warmup_steps must be between 0 and 10000, got -1"),
        ({"max_consecutive": 0}, "cache.max_consecutive must be between 1 and 10000, got 0"),
        ({"max_cached": 0}, "cache.max_cached must be between 1 and 10000, got 0"),
        ({"order": 2}, "cache.order must be between 0 and 1, got 2"),
        ({"first_blocks": 0}, "cache.first_blocks must be between 1 and 10000, got 0"),
        ({"last_blocks": -1}, "cache.last_blocks must be between 0 and 10000, got -1"),
        ({"threshold": float("nan")}, "cache.threshold must be between 0 and 100, got nan"),
        ({"threshold": float("inf")}, "cache.threshold must be between 0 and 100, got inf"),
        (
            {"first_blocks": 2, "last_blocks": BLOCKS - 2},
            "cache.first_blocks and cache.last_blocks must be fewer than the "
            f"{BLOCKS} blocks of the model in all, got {BLOCKS}",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(cache: Any, message: str) -> None:
    request = Generate(request_id="r", prompt="x", cache=CacheChoice.of(cache))
    with pytest.raises(ArgumentError) as refused:
        check(request, RAW, Limits(), drawn_seed=0)
    assert (refused.value.message, refused.value.parameter) == (message, "cache")


def test_ranks_that_would_have_to_share_tokens_and_cannot_are_told_of() -> None:
    blocks, velocity = checked(cache=CacheChoice()).cache, checked(cache=CacheChoice(method="velocity")).cache
    odd = replace(RAW, transformer=replace(RAW.transformer, num_kv_heads=3))
    with pytest.raises(ArgumentError) as refused:
        check_shared(blocks, odd, Degrees(cfg=2))
    assert refused.value.message == (
        "cache cannot be of method blocks here: num_key_value_heads is 3, which the 2 ranks of this server do not "
        "divide; take velocity"
    )
    for cache, model, degrees in (
        (blocks, RAW, Degrees(cfg=2)),
        (velocity, odd, Degrees(cfg=2)),
        (blocks, odd, Degrees()),
    ):
        check_shared(cache, model, degrees)


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        (3, "cache must be text or a map, got a whole number"),
        ({"order": "1"}, "cache.order must be a whole number or null, got text"),
        ({"nope": 1}, "the message does not follow the protocol: Object contains unknown field `nope` - at `$.cache`"),
    ],
)
def test_other_types_are_refused_when_they_come(cache: Any, message: str) -> None:
    sent = {"type": "generate", "version": 5, "request_id": "r", "prompt": "x", "cache": cache}
    with pytest.raises(MessageError) as refused:
        decode_request(msgspec.msgpack.encode(sent))
    assert (refused.value.error.message, refused.value.error.parameter) == (message, "cache")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"guidance_from": -0.1}, "guidance_from must be between 0 and 1, a part of the schedule, got -0.1"),
        (
            {"guidance_until": float("nan")},
            "guidance_until must be between 0 and 1, a part of the schedule, got nan",
        ),
        (
            {"guidance_from": 0.5, "guidance_until": 0.5},
            "guidance_until must be above guidance_from, which is 0.5 (without any guidance: guidance 0), got 0.5",
        ),
        ({"guidance_from": 1.0}, "guidance_from must be below guidance_until, which is 1, got 1.0"),
        ({"guidance_outside": "first"}, "guidance_outside must be one of off, last, got 'first'"),
    ],
)
def test_windows_that_cannot_be_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as refused:
        check(Generate(request_id="r", prompt="x", **parameters), RAW, Limits(), drawn_seed=0)
    assert refused.value.message == message
    assert refused.value.parameter in parameters


def test_a_window_reaches_the_jobs() -> None:
    request = checked(guidance_from=0.25, guidance_until=0.75, guidance_outside="last")
    plan = make_plan(request, RAW, lambda _: Prompt((1,) * 40, cut=False), itertools.count(), {})
    assert (plan.jobs[0].guidance_window, plan.jobs[0].guidance_outside) == ((0.25, 0.75), "last")
    assert request.warnings == ()


@pytest.mark.parametrize(
    ("parameters", "warnings"),
    [
        ({"cache": CacheChoice(), "steps": 8}, ("cache saves nothing: all 8 steps are warm-up",)),
        (
            {"cache": CacheChoice(), "steps": 9},
            ("cache saves nothing: 8 of 9 steps are warm-up, and the last one is always computed",),
        ),
        ({"cache": CacheChoice(), "steps": 10}, ()),
        (
            {"cache": CacheChoice(warmup_steps=0), "steps": 2},
            ("cache saves nothing: of 2 steps the first and the last one are always computed",),
        ),
        (
            {"cache": CacheChoice(warmup_steps=0), "steps": 1},
            ("cache saves nothing: the only step is always computed",),
        ),
        (
            {"guidance": 0.0, "guidance_until": 0.5},
            ("guidance_from and guidance_until were ignored: guidance is 0, so that there is none to leave out",),
        ),
        ({"guidance": 0.0, "guidance_until": 1.0}, ()),
        (
            {"guidance_from": 0.25, "guidance_outside": "last"},  # before the first guided step there is no difference
            ("guidance_outside last was ignored: no step comes after the last guided one",),
        ),
        ({"steps": 8, "guidance_from": 0.875}, ()),
        (
            {"steps": 8, "guidance_from": 0.9},
            ("no step is guided: the 8 steps begin at 0 to 0.875 of the schedule, none of them from 0.9 to 1",),
        ),
    ],
)
def test_what_has_no_effect_is_warned_of(parameters: dict[str, Any], warnings: tuple[str, ...]) -> None:
    assert checked(**parameters).warnings == warnings


def test_a_picture_whose_steps_come_after_the_window_is_not_guided_and_that_is_said() -> None:
    told = [*warn_of_nothing_saved(None, (0.0, 0.5), "last", guided=True, steps=12, skipped=28)]
    assert told == ["no step is guided: the 12 steps begin at 0.7 to 0.975 of the schedule, none of them from 0 to 0.5"]
    assert not [*warn_of_nothing_saved(None, (0.0, 0.75), "last", guided=True, steps=12, skipped=28)]
