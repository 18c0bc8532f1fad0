"""What requests may ask for, and what is filled in where they say nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError
from launcher.messages.client_messages import Generate
from launcher.messages.limits import Limits
from launcher.messages.message_parts import LoraChoice, Outpaint
from launcher.requests.check import CheckedRequest, check

DEMO = ModelConfig.from_folder(DEMO_CHECKPOINT)
RAW = replace(DEMO, is_distilled=False)
ANY_SIZE = replace(DEMO, size_domain=None)


def checked(model: ModelConfig = DEMO, limits: Limits | None = None, **parameters: Any) -> CheckedRequest:
    request = Generate(**({"request_id": "r", "prompt": "a red circle"} | parameters))
    return check(request, model, limits or Limits(), drawn_seed=77)


def test_what_a_request_leaves_open_comes_from_the_checkpoint() -> None:
    turbo, raw = checked(), checked(RAW)
    assert (turbo.steps, turbo.guidance, turbo.width, turbo.height, turbo.seed) == (8, 0.0, 128, 128, 77)
    assert (raw.steps, raw.guidance, raw.mu) == (52, 3.5, None)
    assert turbo.warnings == ()


def test_the_negative_prompt_is_used_only_with_guidance() -> None:
    unused, used = checked(negative_prompt="blurry"), checked(RAW, negative_prompt="blurry", guidance=1)
    assert unused.negative_prompt is None
    needs = "the negative prompt is not used: it needs"
    assert unused.warnings == (f"{needs} guidance, for which Turbo is not made: take Raw",)
    assert checked(RAW, negative_prompt="blurry", guidance=0).warnings == (f"{needs} a guidance above 0",)
    unknown = 'the model does not know "blurry" of the negative prompt, which may spoil the picture'
    assert (used.negative_prompt, used.warnings) == ("blurry", (unknown,))
    assert checked(RAW, negative_prompt="a gray square", guidance=1).warnings == ()
    assert checked(replace(RAW, prompt_domain=None), negative_prompt="blurry", guidance=1).warnings == ()
    assert checked(negative_prompt="").warnings == ()
    assert checked(guidance=0.5).negative_prompt == ""
    assert checked(RAW).negative_prompt == ""


def test_guidance_that_the_checkpoint_has_built_in_is_warned_of() -> None:
    message = "guidance 4.5 may spoil the picture: Turbo has it built in; leave it out, or take Raw"
    assert checked(guidance=4.5).warnings == (message,)
    states_it = replace(DEMO, stated_guidance=1.0)
    assert [checked(model, guidance=4.5).warnings for model in (RAW, states_it)] == [(), ()]
    assert checked(guidance=0).warnings == checked(RAW).warnings == ()


@pytest.mark.parametrize(
    ("asked", "size", "warned"),
    [
        ((128, 64), (128, 64), False),
        ((200, 200), (208, 208), True),
        ((65, 4095), (80, 4096), True),
        ((None, 100), (128, 112), True),
        ((None, None), (128, 128), False),
    ],
)
def test_sizes_are_rounded_up_and_that_is_said(
    asked: tuple[int | None, int | None], size: tuple[int, int], warned: bool
) -> None:
    request = checked(ANY_SIZE, width=asked[0], height=asked[1])
    assert (request.width, request.height) == size
    assert len(request.warnings) == warned
    if warned:
        assert f"rounded up to {size[0]} × {size[1]}" in request.warnings[0]


def test_a_size_that_the_checkpoint_was_not_made_for_is_drawn_with_a_warning() -> None:
    assert DEMO.size_domain is not None
    large = checked(width=1024, height=1024)
    assert (large.width, large.height) == (1024, 1024)
    assert large.warnings == (DEMO.size_domain.warning(1024, 1024),)
    rounded, outside = checked(width=250, height=257).warnings
    assert "rounded up to 256 × 272" in rounded
    assert outside.startswith("256 × 272 is outside of what the model was made for")
    assert checked(width=81, height=256).warnings == ("the size 81 × 256 was rounded up to 96 × 256, multiples of 16",)
    assert checked(ANY_SIZE, width=1024, height=1024).warnings == ()


@pytest.mark.parametrize("prompt", ["", "  not stripped\n", "ä" * 8192, "\x00", "🦊"])
def test_prompts_are_taken_as_they_are(prompt: str) -> None:
    assert checked(prompt=prompt).prompt == prompt


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"width": 100000}, "width must be between 64 and 4096, got 100000"),
        ({"height": 0}, "height must be between 64 and 4096, got 0"),
        ({"width": 4096, "height": 4096}, "width × height must be at most 8400000 pixels, got 4096 × 4096"),
        ({"steps": 0}, "steps must be between 1 and 200, got 0"),
        ({"steps": 201}, "steps must be between 1 and 200, got 201"),
        ({"guidance": -0.1}, "guidance must be between 0 and 20, got -0.1"),
        ({"guidance": float("nan")}, "guidance must be between 0 and 20, got nan"),
        ({"guidance": float("inf")}, "guidance must be between 0 and 20, got inf"),
        ({"mu": float("nan")}, "mu must be between -10 and 10, got nan"),
        ({"mu": float("-inf")}, "mu must be between -10 and 10, got -inf"),
        ({"num_images": 0}, "num_images must be between 1 and 10, got 0"),
        ({"num_images": 11}, "num_images must be between 1 and 10, got 11"),
        ({"seed": 2**64}, f"seed must be between {-(2**63)} and {2**64 - 1}, got {2**64}"),
        ({"seed": -(2**63) - 1}, f"seed must be between {-(2**63)} and {2**64 - 1}, got {-(2**63) - 1}"),
        ({"prompt": "x" * 16385}, "prompt must be at most 16384 bytes of UTF-8, got 16385"),
        ({"prompt": "ä" * 8193}, "prompt must be at most 16384 bytes of UTF-8, got 16386"),
        ({"prompt": "a \ud800"}, "prompt must be valid Unicode text, got lone surrogates"),
        ({"negative_prompt": "\udfff"}, "negative_prompt must be valid Unicode text, got lone surrogates"),
        ({"negative_prompt": "x" * 16385}, "negative_prompt must be at most 16384 bytes of UTF-8, got 16385"),
        ({"output_compression": 101}, "output_compression must be between 0 and 100, got 101"),
        ({"output_compression": -1, "output_format": "webp"}, "output_compression must be between 0 and 100, got -1"),
        ({"output_format": "gif"}, "output_format must be one of png, jpeg, webp, got 'gif'"),
        ({"moderation": "high"}, "moderation must be one of auto, low, got 'high'"),
        ({"user": "x" * 257}, "user must be at most 256 characters, got 257"),
        ({"priority": 101}, "priority must be between -100 and 100, got 101"),
        ({"timeout_s": 0.0}, "timeout_s must be above 0 and at most 86400, got 0.0"),
        ({"timeout_s": float("nan")}, "timeout_s must be above 0 and at most 86400, got nan"),
    ],
)
def test_what_is_not_allowed_is_refused_with_name_range_and_value(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as error:
        checked(**parameters)
    assert error.value.message == message
    assert error.value.parameter in parameters


@pytest.mark.parametrize(
    ("seed", "used"),
    [
        (2**64 - 1, 2**53 - 1),
        (2**53, 0),
        (-2, 2**53 - 2),
        (2**64 - 2, 2**53 - 2),  # the same, read without its sign
        (-(2**63), 0),
        (0, 0),
        (2**53 - 1, 2**53 - 1),
    ],
)
def test_a_seed_of_64_bits_is_reduced_with_a_warning_that_says_to_which(seed: int, used: int) -> None:
    request = checked(seed=seed)
    assert request.seed == used
    told = f"seed {seed} was reduced to {used}, which draws the same: seeds are between 0 and {2**53 - 1}"
    assert request.warnings == (() if seed == used else (told,))
    again = checked(seed=used)
    assert (again.seed, again.warnings) == (used, ())


def test_a_seed_is_reduced_so_that_all_images_have_one() -> None:
    assert checked(seed=2**53 - 1, num_images=3).seed == 2**53 - 3
    assert checked(limits=Limits.of({"max_seed": 999}), seed=1234).seed == 234


def test_a_seed_of_minus_1_is_drawn_as_without_one() -> None:
    assert checked(seed=-1) == checked()


def test_a_compression_is_for_files_that_lose_something() -> None:
    for output_format in ("jpeg", "webp"):
        request = checked(output_format=output_format, output_compression=40)
        assert (request.output_compression, request.warnings) == (40, ())
    assert checked(output_compression=100).warnings == ()  # OpenAI's default
    (warning,) = checked(output_compression=40).warnings
    assert warning.startswith("output_compression was ignored: PNG files lose nothing")


def test_of_a_picture_the_strength_says_which_steps_are_run() -> None:
    alone, masked = checked(pictures=("image",)), checked(pictures=("image", "mask"))
    assert (alone.strength, alone.steps, alone.skipped_steps) == (0.6, 5, 3)
    assert (masked.strength, masked.steps, masked.skipped_steps) == (1.0, 8, 0)
    full = checked(pictures=("image",), strength=0.5, strength_steps="full", steps=3)
    assert (full.steps, full.skipped_steps) == (3, 3)
    kept = checked(pictures=("image",), strength=0)
    assert (kept.steps, kept.skipped_steps) == (0, 8)


@pytest.mark.parametrize(("rule", "least"), [("partial", 0.875), ("full", 0.888)])
def test_a_strength_that_keeps_nothing_of_a_picture_is_warned_of(rule: Any, least: float) -> None:
    (warning,) = checked(pictures=("image",), strength=0.9, strength_steps=rule).warnings
    assert warning == f"nothing of the picture is kept: with 8 steps a strength above {least} is as good as 1"
    assert checked(pictures=("image",), strength=least, strength_steps=rule).warnings == ()
    assert checked(pictures=("image",), strength=1, strength_steps=rule).warnings == ()  # which says so
    assert checked(pictures=("image", "mask"), strength=0.9, strength_steps=rule).warnings == ()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"strength": 0.5}, "strength needs an image to begin from"),
        ({"outpaint": Outpaint(left=16)}, "outpaint needs an image to begin from"),
        ({"mask_crop": 8}, "mask_crop needs an image to begin from"),
        ({"pictures": ("mask",), "mask_feather": 0}, "mask needs an image to begin from"),
        ({"strength_steps": "all"}, "strength_steps must be one of partial, full, got 'all'"),
        ({"pictures": ("image",), "strength": -0.1}, "strength must be between 0 and 1, got -0.1"),
        ({"pictures": ("image",), "strength": float("nan")}, "strength must be between 0 and 1, got nan"),
        (
            {"pictures": ("image",), "strength": 1e-9, "strength_steps": "full"},
            "strength must be 0, or at least 0.0008 with 8 steps, got 1e-09",
        ),
    ],
)
def test_what_cannot_be_done_with_a_picture_or_without_one_is_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as raised:
        checked(**parameters)
    assert raised.value.message == message
    assert raised.value.parameter == message.split()[0]


def test_limits_can_be_changed_and_are_checked_themselves() -> None:
    limits = Limits.of({"max_side": 256.0, "max_guidance": 2.5})
    assert (limits.max_side, limits.max_guidance, limits.max_steps) == (256, 2.5, 200)
    with pytest.raises(ArgumentError, match="width must be between 64 and 256, got 512"):
        checked(limits=limits, width=512)
    for changes, message in (
        ({"max_sides": 1}, "limit must be one of min_side, max_side"),
        ({"max_side": 0}, "limit max_side must be a positive whole number, got 0"),
        ({"max_side": 99.5}, "limit max_side must be a positive whole number, got 99.5"),
        ({"max_side": float("nan")}, "limit max_side must be"),
        ({"max_guidance": float("inf")}, "limit max_guidance must be a positive number, got inf"),
        ({"max_side": 32}, "limit min_side 64 must not be above max_side 32"),
    ):
        with pytest.raises(ArgumentError, match=message):
            Limits.of(changes)


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "prompt": st.text(),
            "negative_prompt": st.none() | st.text(),
            "seed": st.none() | st.integers(),
            "steps": st.none() | st.integers(),
            "guidance": st.none() | st.floats(),
            "mu": st.none() | st.floats(),
            "width": st.none() | st.integers() | st.integers(64, 4096),
            "height": st.none() | st.integers() | st.integers(64, 4096),
            "num_images": st.integers() | st.integers(1, 10),
            "priority": st.integers(),
            "timeout_s": st.none() | st.floats(),
            "output_compression": st.none() | st.integers(),
            "output_format": st.sampled_from(["png", "jpeg", "webp"]) | st.text(),
        },
    )
)
def test_any_request_is_within_the_limits_or_refused(parameters: dict[str, Any]) -> None:
    limits = Limits()
    try:
        request = checked(**parameters)
    except ArgumentError:
        return
    assert request.width % 16 == request.height % 16 == 0
    assert 64 <= request.width <= 4096
    assert 64 <= request.height <= 4096
    assert request.width * request.height <= limits.max_pixels
    assert 0 <= request.seed <= request.seed + request.num_images - 1 <= limits.max_seed
    assert 1 <= request.steps <= limits.max_steps
    assert 0 <= request.guidance <= limits.max_guidance
    assert (request.negative_prompt is None) == (request.guidance == 0)


def test_loras_are_named_once_within_limits() -> None:
    choices = (LoraChoice(name="a"), LoraChoice(name="b", strength=0), LoraChoice(name="c", strength=-2))
    assert checked(loras=choices).loras == (("a", 1.0), ("b", 0.0), ("c", -2.0))
    request = Generate(request_id="r", prompt="a fox", loras=choices)
    loaded = {"a": 0.5, "b": 1.0, "c": 1.0, "d": 1.0}
    known = check(request, DEMO, Limits(), drawn_seed=0, loras=loaded)
    assert known.loras == (("a", 0.5), ("b", 0.0), ("c", -2.0))
    for loras, message in (
        ((LoraChoice(name="a"),) * 2, "loras must be different ones, got 'a'"),
        (tuple(LoraChoice(name=str(i)) for i in range(9)), "loras must be at most 8, got 9"),
        ((LoraChoice(name="a", strength=float("inf")),), r"loras\[0\]\.strength must be between -10 and 10, got inf"),
    ):
        with pytest.raises(ArgumentError, match=message) as refusal:
            checked(loras=loras)
        assert refusal.value.parameter == "loras"
    with pytest.raises(ArgumentError, match=r"among the loaded ones \(n0, .* n11 and 3 more\), got 'a'"):
        check(request, DEMO, Limits(), drawn_seed=0, loras=dict.fromkeys((f"n{i}" for i in range(15)), 1.0))
