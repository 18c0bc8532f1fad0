"""A service that answers as OpenAI's /v1/moderations does."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from launcher.filters.built_in import moderation
from launcher.filters.built_in.moderation import Moderation
from launcher.filters.protocol import Picture, Prompt, Unavailable
from tests.launcher.filters.urls.stand_in import Reply, StandIn
from tests.launcher.processes import PATIENCE_S

NOTHING = Reply({"results": [{"flagged": False}]})


@pytest.fixture
def asked(stand_in: StandIn) -> Iterator[Moderation]:
    with stand_in.tried_out(NOTHING):
        made = moderation.make(f"{stand_in.url}/v1", {"model": "omni-moderation-latest", "negative": "yes"})
    made.patience_s = PATIENCE_S
    yield made
    made._service.close()


def picture(width: int, height: int) -> Picture:
    """A picture with a gradient, which JPEG keeps."""
    columns, rows = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    rgb = np.stack([columns, rows, np.full_like(rows, 128)], axis=-1).astype(np.uint8)
    return Picture(width, height, rgb.tobytes(), "image", "a prompt")


def result(**scores: float) -> dict[str, Any]:
    flags = {name: score >= 0.4 for name, score in scores.items()}
    return {"flagged": any(flags.values()), "categories": flags, "category_scores": scores}


def score_of(text: str) -> float:
    return float(text.rpartition(" ")[2]) / 1000


def test_each_prompt_has_the_higher_scores_of_its_texts_however_many_there_are(
    stand_in: StandIn, asked: Moderation
) -> None:
    stand_in.reply = lambda body: Reply({"results": [result(violence=score_of(text)) for text in body["input"]]})
    prompts = [Prompt(f"text {number}", f"text {number % 7 * 50}" if number % 2 else None) for number in range(100)]
    expected = [max(number, number % 7 * 50 if number % 2 else 0) / 1000 for number in range(100)]
    assert [scores["violence"] for scores in asked.check_prompts(prompts)] == pytest.approx(expected)
    assert max(len(body["input"]) for body in stand_in.asked) == 32
    assert sum(len(body["input"]) for body in stand_in.asked) == 150
    assert {body["model"] for body in stand_in.asked} == {"omni-moderation-latest"}


def test_blank_texts_are_not_asked_about(stand_in: StandIn, asked: Moderation) -> None:
    stand_in.reply = lambda body: Reply({"results": [result(hate=0.3) for _ in body["input"]]})
    assert asked.check_prompts([Prompt("", " \n"), Prompt("x", ""), Prompt(" ")]) == [{}, {"hate": 0.3}, {}]
    assert [body["input"] for body in stand_in.asked] == [["x"]]
    assert asked.check_prompts([]) == []


def test_negative_prompts_are_asked_about_where_that_is_wanted(stand_in: StandIn) -> None:
    stand_in.reply = lambda body: Reply({"results": [result(hate=0.3) for _ in body["input"]]})
    with stand_in.tried_out(NOTHING):
        made, strict = (moderation.make(stand_in.url, options) for options in ({}, {"negative": "yes"}))
    made.patience_s = strict.patience_s = PATIENCE_S
    assert made.check_prompts([Prompt("x", "y")]) == strict.check_prompts([Prompt("x", "y")]) == [{"hate": 0.3}]
    assert [body["input"] for body in stand_in.asked] == [["x"], ["x", "y"]]


def test_each_picture_is_a_question_and_large_ones_are_reduced(stand_in: StandIn, asked: Moderation) -> None:
    sent: list[np.ndarray] = []

    def reply(body: Any) -> Reply:
        ((kind, url),) = [(part["type"], part["image_url"]["url"]) for part in body["input"]]
        assert kind == "image_url"
        assert url.startswith("data:image/jpeg;base64,")
        pixels = np.asarray(Image.open(BytesIO(b64decode(url.partition(",")[2]))).convert("RGB"))
        sent.append(pixels)
        return Reply({"results": [result(sexual=pixels.shape[1] / 2000)]})

    stand_in.reply = reply
    pictures = [picture(64, 32), picture(1600, 800), picture(1024, 1), picture(3000, 1)]
    scores = asked.check_images(pictures)
    assert [each["sexual"] for each in scores] == pytest.approx([0.032, 0.512, 0.512, 0.512])
    assert sorted(each.shape[:2] for each in sent) == [(1, 1024), (1, 1024), (32, 64), (512, 1024)]
    (small,) = [each for each in sent if each.shape[1] == 64]
    expected = np.frombuffer(pictures[0].rgb, np.uint8).reshape(32, 64, 3)
    assert np.abs(small.astype(int) - expected).mean() < 4


@pytest.mark.parametrize(
    ("answered", "scores"),
    [
        (
            {"categories": {"a/b": True, "c": False}, "category_scores": {"a/b": 0.2, "c": 0.45}},
            {"a/b": 0.5, "c": 0.45},
        ),
        ({"categories": {"a": True}, "category_scores": {"a": 0.9}, "flagged": True}, {"a": 0.9}),
        ({"categories": {"a": True, "b": False, "c": None}}, {"a": 1.0, "b": 0.0, "c": 0.0}),
        ({"categories": {"a": True}, "category_scores": {"a": None}}, {"a": 1.0}),
        ({"category_scores": {"a": 1, "b": 0}}, {"a": 1.0, "b": 0.0}),
        ({"flagged": True, "categories": {"a": False}, "category_scores": {"a": 0.1}}, {"a": 0.1, "flagged": 1.0}),
        ({"flagged": True}, {"flagged": 1.0}),
        ({"flagged": False}, {}),
    ],
)
def test_what_the_service_flags_counts_half_at_least(
    stand_in: StandIn, asked: Moderation, answered: Any, scores: dict[str, float]
) -> None:
    stand_in.reply = lambda body: Reply({"id": "modr-1", "results": [answered]})
    assert asked.check_images([picture(8, 8)]) == [scores]


@pytest.mark.parametrize(
    "answered",
    [
        {},
        [],
        None,
        {"results": []},
        {"results": {}},
        {"results": [result(a=0.0)] * 2},
        {"results": [None]},
        {"results": [{}]},
        {"results": [{"categories": {}, "category_scores": {}}]},
        {"results": [{"category_scores": {"a": 1.01}}]},
        {"results": [{"category_scores": {"a": -0.1}}]},
        {"results": [{"category_scores": {"a": "0.1"}}]},
        {"results": [{"category_scores": {"a": True}}]},
        {"results": [{"category_scores": {"a": float("nan")}}]},
        {"results": [{"category_scores": [0.1]}]},
        {"results": [{"categories": {"a": 1}}]},
        {"results": [{"category_scores": {"": 0.1}}]},
        {"results": [{"category_scores": {"a\n": 0.1}}]},
        {"results": [{"category_scores": {"a" * 65: 0.1}}]},
        {"results": [{"category_scores": {str(number): 0.1 for number in range(257)}}]},
        {"results": [{"flagged": 0}]},
    ],
)  # fmt: skip
def test_an_answer_of_another_form_is_never_taken_for_nothing_found(
    stand_in: StandIn, asked: Moderation, answered: Any
) -> None:
    stand_in.reply = lambda body: Reply(answered)
    with pytest.raises(Unavailable, match="the moderation service answered"):
        asked.check_prompts([Prompt("x")])
