"""What passes all filters, and what does not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest

from engine.errors import LaunchError, ModerationBlockedError
from launcher.awake import AwakeLoop
from launcher.filters.gate import Gate
from launcher.filters.protocol import Picture, Prompt
from launcher.filters.spec import read_specs
from launcher.filters.verdicts import BlockedError, Finding
from tests.launcher.filters.stand_in import MARKER, STAND_IN

T = TypeVar("T")
Run = Callable[[Awaitable[T]], T]


def picture(red: int, size: tuple[int, int] = (32, 24), kind: str = "image") -> Picture:
    width, height = size
    return Picture(width, height, bytes((red, 9, 9)) * (width * height - 1) + b"\xff\xff\xff", kind, "a cat")


@pytest.fixture(scope="module")
def run() -> Iterator[Run[Any]]:
    """Run coroutines in one loop."""
    with asyncio.Runner(loop_factory=AwakeLoop) as runner:
        yield lambda awaitable: runner.run(awaited(awaitable))


async def awaited(awaitable: Awaitable[T]) -> T:
    return await awaitable


@pytest.fixture(scope="module")
def gate(run: Run[Any]) -> Iterator[Gate]:
    """Two filters that check, the second of prompts alone, and one that marks."""
    texts = [
        f"{STAND_IN},name=first,blur=red:0.5,block=red:0.9,log=plain:0.1,block=nude:0.8,low-block=nude:0.95",
        f"{STAND_IN},name=second,only=prompts,block=weapons:0.5,block=nude:never",
        f"{MARKER},name=mark",
    ]
    gate = Gate(read_specs(texts), fail_open=False)
    run(gate.start())
    yield gate
    gate.close()


def test_what_no_filter_finds_passes(gate: Gate, run: Run[Any]) -> None:
    judged = run(gate.check_prompt(Prompt("a cat", "a dog"), [picture(0, kind="upload")]))
    assert (judged.findings, judged.action, judged.rgb, judged.warnings) == ((), "allow", None, ())
    assert gate.not_ready is None


def test_a_prompt_that_one_of_several_blocks_is_an_error_with_its_category(gate: Gate, run: Run[Any]) -> None:
    with pytest.raises(BlockedError) as raised:
        run(gate.check_prompt(Prompt("finds:weapons=0.6 finds:plain=0.3")))
    error = raised.value
    assert error.message == "the prompt was blocked by the content filter second (weapons)"
    assert (error.code, error.parameter, error.category) == ("moderation_blocked", "prompt", "weapons")
    assert error.findings == (
        Finding("first", "prompt", "log", "plain", 0.3),
        Finding("second", "prompt", "block", "weapons", 0.6),
    )


def test_a_negative_prompt_that_is_blocked_is_named(gate: Gate, run: Run[Any]) -> None:
    with pytest.raises(ModerationBlockedError, match=r"^the negative prompt was blocked") as raised:
        run(gate.check_prompt(Prompt("a cat", "finds:nude=1")))
    assert raised.value.parameter == "negative_prompt"
    with pytest.raises(ModerationBlockedError, match=r"^the prompt was blocked"):
        run(gate.check_prompt(Prompt("finds:nude=1", "a dog")))


def test_moderation_low_has_thresholds_of_its_own(gate: Gate, run: Run[Any]) -> None:
    prompt = Prompt("finds:nude=0.9")
    with pytest.raises(ModerationBlockedError):
        run(gate.check_prompt(prompt, moderation="auto"))
    assert run(gate.check_prompt(prompt, moderation="low")).action == "allow"


def test_a_picture_that_was_sent_is_blocked_where_an_image_would_be_blurred(gate: Gate, run: Run[Any]) -> None:
    with pytest.raises(ModerationBlockedError, match="the picture that was sent was blocked") as raised:
        run(gate.check_prompt(Prompt("a cat"), [picture(0, kind="upload"), picture(200, kind="upload")]))
    assert (raised.value.parameter, raised.value.category) == ("image", "red")


@pytest.mark.parametrize("kind", ["image", "preview"])
def test_a_blurred_picture_shows_no_detail_and_is_marked(gate: Gate, run: Run[Any], kind: str) -> None:
    size = (64, 48)
    judged = run(gate.check_image(picture(200, size, kind)))
    assert judged.action == "blur"
    assert judged.findings == (Finding("first", kind, "blur", "red", 200 / 255),)
    assert len(judged.rgb) == 64 * 48 * 3
    assert judged.rgb[0] == 7
    assert judged.rgb[-3:] != b"\xff\xff\xff"
    assert judged.rgb[600:603] == bytes((200, 9, 9))


def test_a_blocked_picture_has_no_pixels(gate: Gate, run: Run[Any]) -> None:
    judged = run(gate.check_image(picture(250)))
    assert (judged.action, judged.rgb) == ("block", None)


def test_a_picture_that_passes_is_marked(gate: Gate, run: Run[Any]) -> None:
    judged = run(gate.check_image(picture(3)))
    assert judged.rgb == b"\7" + picture(3).rgb[1:]
    assert judged.action == "allow"
    assert gate.image_s > 0


def test_many_checks_at_once_get_each_their_own_answer(gate: Gate, run: Run[Any]) -> None:
    async def check_all() -> list[Any]:
        return await asyncio.gather(*(gate.check_image(picture(red)) for red in range(256)))

    actions = [judged.action for judged in run(check_all())]
    expected = ["block" if red / 255 >= 0.9 else "blur" if red / 255 >= 0.5 else "allow" for red in range(256)]
    assert actions == expected


@pytest.mark.parametrize(
    ("filter_", "reason"),
    [
        (f"{STAND_IN},fails=raise", "there is no such model"),
        pytest.param(f"{STAND_IN},fails=exit", "ended with exit code 3", marks=pytest.mark.slow),
        pytest.param(f"{STAND_IN},no_such=1", "TypeError", marks=pytest.mark.slow),
        pytest.param("python:no.such:Filter", "there is no module no: it must be installed", marks=pytest.mark.slow),
        pytest.param(
            "python:tests.launcher.filters.stand_in:Nothing",
            "Nothing has none of the methods check_prompts",
            marks=pytest.mark.slow,
        ),
        (f"{MARKER},only=prompts", "only=prompts leaves nothing of what it does: it has mark_images"),
    ],
)
def test_a_filter_that_cannot_be_made_is_an_error_at_the_start(run: Run[Any], filter_: str, reason: str) -> None:
    gate = Gate(read_specs([f"{STAND_IN},name=well", f"{filter_},name=mine"]), fail_open=True)
    with pytest.raises(LaunchError, match=r"^content filter mine cannot be started: ") as raised:
        run(gate.start())
    assert reason in raised.value.message
