"""Chat models that judge content as Llama Guard and ShieldGemma do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from launcher.filters.built_in import chat
from launcher.filters.built_in.chat import POLICIES, Chat
from launcher.filters.loading import load
from launcher.filters.protocol import Picture, Prompt, Unavailable
from launcher.filters.spec import read_spec
from tests.launcher.filters.urls.stand_in import Reply, StandIn
from tests.launcher.processes import PATIENCE_S

Make = Callable[..., Chat]
PICTURE = Picture(16, 16, bytes(16 * 16 * 3), "image", "what was asked for")


@pytest.fixture
def made(stand_in: StandIn) -> Iterator[Make]:
    filters: list[Chat] = []

    def make(**options: str) -> Chat:
        with stand_in.tried_out(answer("No" if options.get("style") == "shieldgemma" else "safe")):
            filters.append(chat.make(f"{stand_in.url}/v1", {"model": "guard", **options}))
        filters[-1].patience_s = PATIENCE_S
        return filters[-1]

    yield make
    for each in filters:
        each._service.close()


def answer(text: str, *tokens: dict[str, float]) -> Reply:
    """A completion. tokens: candidates of each token with their probabilities, the one that is taken first."""
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if tokens:
        choice["logprobs"] = {"content": [_token(candidates) for candidates in tokens]}
    return Reply({"object": "chat.completion", "choices": [choice]})


def _token(candidates: dict[str, float]) -> dict[str, Any]:
    several = [{"token": token, "logprob": math.log(chance)} for token, chance in candidates.items()]
    return {**several[0], "top_logprobs": several}


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        (answer("safe"), {"unsafe": 0.0}),
        (answer("\n\nsafe"), {"unsafe": 0.0}),
        (answer("unsafe\nS1,S10"), {"S1": 1.0, "S10": 1.0}),
        (answer("\n\nunsafe\nS12, S4\n"), {"S12": 1.0, "S4": 1.0}),
        (answer("Unsafe"), {"unsafe": 1.0}),
        (answer("unsafe\n!!"), {"unsafe": 1.0}),
        (answer("safe", {"safe": 0.75, "unsafe": 0.25}), {"unsafe": 0.25}),
        (answer("\n\nsafe", {"\n\n": 0.9, "safe": 0.1}, {"safe": 0.9, "unsafe": 0.1}), {"unsafe": 0.1}),
        (answer("unsafe\nS2", {"unsafe": 0.6, "safe": 0.2, "maybe": 0.2}, {"\n": 1.0}, {"S2": 1.0}), {"S2": 0.75}),
        (answer("unsafe\nS2", {"un": 0.9, "safe": 0.1}, {"safe": 1.0}), {"S2": 0.9}),
        (answer("unsafe\nS2", {"unsafe": 0.2, "safe": 0.8}), {"S2": 0.5}),  # what it says counts
        (answer("safe", {"safe": 1.0}), {"unsafe": 0.0}),
    ],
)
def test_llama_guards_answers_become_scores(
    stand_in: StandIn, made: Make, reply: Reply, scores: dict[str, float]
) -> None:
    stand_in.reply = lambda body: reply
    assert made().check_prompts([Prompt("x")])[0] == pytest.approx(scores)
    (asked,) = stand_in.asked
    assert asked["messages"] == [{"role": "user", "content": "x"}]
    assert (asked["model"], asked["temperature"], asked["logprobs"]) == ("guard", 0, True)
    assert stand_in.requests[0][0] == "/v1/chat/completions"


@pytest.mark.parametrize(
    "reply",
    [
        answer("I cannot help with that."),
        answer(""),
        answer("safe and sound"),
        answer("unsafely\nS1"),
        Reply({}),
        Reply([]),
        Reply({"choices": []}),
        Reply({"choices": [{"message": {"content": None, "refusal": "no"}}]}),
        Reply({"choices": [{"message": {"content": "safe"}, "logprobs": {"content": [{}]}}]}),
        Reply({"choices": [{"message": {"content": "safe"}, "logprobs": {"content": [{"token": "safe"}]}}]}),
        Reply({"choices": [{"message": {"content": "safe"}, "logprobs": []}]}, 500),
    ],
)  # fmt: skip
def test_an_answer_of_another_form_is_never_taken_for_safe(stand_in: StandIn, made: Make, reply: Reply) -> None:
    stand_in.reply = lambda body: reply
    guard = made()
    guard._service._pause_s = 0.0
    for style in (guard, made(style="shieldgemma", policies="server")):
        style._service._pause_s = 0.0
        with pytest.raises(Unavailable):
            style.check_prompts([Prompt("x")])


def test_shieldgemma_is_asked_about_each_policy_and_each_text(stand_in: StandIn, made: Make) -> None:
    def reply(body: Any) -> Reply:
        system, user = body["messages"]
        (category,) = [name for name, policy in POLICIES.items() if policy == system["content"]]
        chance = 0.9 if category in user["content"] else 0.1
        yes, no = ({"Yes": chance}, {"No": 1 - chance})
        return answer("**Yes**, since" if chance > 0.5 else "No.", {**yes, **no} if chance > 0.5 else {**no, **yes})

    stand_in.reply = reply
    prompts = [Prompt("sexual", "hate"), Prompt("a cat"), Prompt("dangerous", "")]
    scores = made(style="shieldgemma", negative="yes").check_prompts(prompts)
    found = [{"sexual", "hate"}, set(), {"dangerous"}]
    assert scores == [
        pytest.approx({category: 0.9 if category in each else 0.1 for category in POLICIES}) for each in found
    ]
    assert len(stand_in.asked) == 4 * len(POLICIES)


def test_shieldgemma_is_asked_about_some_policies_or_those_of_its_server(stand_in: StandIn, made: Make) -> None:
    stand_in.reply = lambda body: answer("Yes")
    assert made(style="shieldgemma", policies="hate/sexual").check_prompts([Prompt("x")]) == [
        {"hate": 1.0, "sexual": 1.0}
    ]
    assert made(style="shieldgemma", policies="server").check_prompts([Prompt("x")]) == [{"unsafe": 1.0}]
    assert [len(body["messages"]) for body in stand_in.asked] == [2, 2, 1]


def test_a_server_that_takes_no_logprobs_is_not_asked_for_them(stand_in: StandIn, made: Make) -> None:
    stand_in.reply = lambda body: Reply({}, 400) if "logprobs" in body else answer("safe")
    assert made(logprobs="no").check_prompts([Prompt("x")]) == [{"unsafe": 0.0}]
    with pytest.raises(Unavailable):
        made().check_prompts([Prompt("x")])


def test_categories_are_known_where_the_server_does_not_make_them(stand_in: StandIn, made: Make) -> None:
    assert made().categories is None
    assert [*made(style="shieldgemma", policies="hate").categories] == ["hate"]
    stand_in.reply = lambda body: answer("No")
    with pytest.raises(ValueError, match=r"no category 'sexuel', but sexual, .*; did you mean sexual\?"):
        load(read_spec(f"chat:{stand_in.url},model=guard,style=shieldgemma,block=sexuel:0.3"))


def test_pictures_are_shown_with_their_prompt_to_models_that_see(stand_in: StandIn, made: Make) -> None:
    assert not hasattr(made(), "check_images")
    stand_in.reply = lambda body: answer("unsafe\nS3")
    guard = made(images="yes")
    assert isinstance(guard, chat.ChatWithPictures)
    assert guard.check_images([PICTURE, PICTURE]) == [{"S3": 1.0}] * 2
    text, shown = stand_in.asked[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "what was asked for"}
    assert shown["image_url"]["url"].startswith("data:image/jpeg;base64,")


def test_negative_prompts_are_asked_about_where_that_is_wanted(stand_in: StandIn, made: Make) -> None:
    stand_in.reply = lambda body: answer("unsafe\nS1" if "nude" in str(body) else "safe")
    prompt = Prompt("a statue", "nude")
    assert made(negative="yes").check_prompts([prompt]) == [{"unsafe": 0.0, "S1": 1.0}]
    assert made().check_prompts([prompt]) == [{"unsafe": 0.0}]


def test_nothing_is_asked_about_blank_texts(stand_in: StandIn, made: Make) -> None:
    assert made().check_prompts([Prompt(" ", ""), Prompt("")]) == [{}, {}]
    assert stand_in.asked == []
