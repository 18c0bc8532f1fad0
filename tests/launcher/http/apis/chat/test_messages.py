"""What of a chat is drawn, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from engine.errors import ArgumentError
from launcher.http.apis.chat.body import ChatRequest, to_image_request
from launcher.http.apis.openai_body import ImageRequest


def said(content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": content}]


def read(**body: Any) -> ImageRequest:
    return to_image_request(ChatRequest.model_validate({"messages": said("a fox")} | body))


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        (said(" a fox "), " a fox "),
        (said([{"type": "text", "text": "a fox"}, "in snow", {"text": "at night"}]), "a fox\nin snow\nat night"),
        (said([{"type": "input_text", "text": "a fox"}]), "a fox"),
        (
            [
                {"role": "system", "content": "You draw."},
                *said([{"type": "image_url", "image_url": {"url": "data:,"}}]),
                {"role": "assistant", "content": None, "tool_calls": []},
                *said("a fox"),
                {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]},
            ],
            "a fox",
        ),
    ],
)
def test_the_text_of_the_users_last_message_is_drawn(messages: list[object], prompt: str) -> None:
    assert read(messages=messages).prompt == prompt


@pytest.mark.parametrize(
    ("body", "parameter", "words"),
    [
        ({"messages": []}, "messages", "must have one of role user"),
        ({"messages": [{"role": "system", "content": "a fox"}]}, "messages", "must have one of role user"),
        ({"messages": said(" \n")}, "messages", "has no text to draw"),
        ({"messages": said(None)}, "messages", "has no text to draw"),
        ({"messages": said([{"type": "image_url", "image_url": {}}])}, "messages", "has no text to draw"),
        ({"messages": said(["a fox", {"type": "file"}])}, "messages", "text and an image, got a part of type 'file'"),
        ({"messages": said([{"type": "text", "text": 7}])}, "messages", "text and an image, got a part of type 'text'"),
        ({"messages": said([7])}, "messages", "text and an image, got a part of type 'None'"),
        ({"messages": said("### Task:\nGenerate a title")}, "messages", "choose another model for these tasks"),
        ({"modalities": ["text"]}, "modalities", """modalities must have "image", got ['text']"""),
        ({"modalities": ["text" * 1000]}, "modalities", "got ['text"),
        ({"response_format": {"type": "json_object"}}, "response_format", "writes no JSON"),
        ({"tool_choice": "required"}, "tool_choice", "calls no tools: leave tool_choice out"),
        ({"function_call": {"name": "draw"}}, "function_call", "calls no tools: leave function_call out"),
        ({"progress": True}, "progress", "progress needs stream to be true"),
        ({"partial_images": 2}, "partial_images", "POST /v1/images/generations streams previews"),
        ({"image_config": {"aspect_ratio": "16:9"}}, "image_config", "give size, as 1344x768, or width and height"),
        ({"prompt": "a fox"}, "prompt", "a chat's prompt is its last message"),
        ({"sede": 1}, "sede", "unknown parameter 'sede': did you mean seed?"),
        ({"temprature": 1}, "temprature", "unknown parameter 'temprature': did you mean temperature?"),
        ({"extra_body": {"stepz": 1}}, "stepz", "unknown parameter 'stepz': did you mean steps?"),
        ({"loras": [{"nam": "ink"}]}, "loras", "loras[0].name is required"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_sentence(body: dict[str, Any], parameter: str, words: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        read(**body)
    assert caught.value.parameter == parameter
    assert words in caught.value.message
    assert len(caught.value.message) < 300


def test_every_parameter_that_openai_defines_is_taken_and_changes_nothing() -> None:
    defined = set(CompletionCreateParamsBase.__annotations__) | {"stream"}
    own = {"messages", "model", "modalities", "n", "response_format", "seed", "stream", "stream_options"}
    assert len(defined - own) > 20
    changed = dict.fromkeys(sorted(defined - own), "auto") | {"moderation": "auto"}
    assert read(**changed).model_dump(exclude={"user", "safety_identifier", "moderation"}) == read().model_dump(
        exclude={"user", "safety_identifier", "moderation"}
    )


def test_sampling_parameters_of_other_servers_change_nothing() -> None:
    assert read(top_k=40, min_p=0.1, repetition_penalty=1.1, chat_template_kwargs={}, options={"num_ctx": 1}) == read()


def test_parameters_may_lie_in_an_extra_body() -> None:
    within = read(extra_body={"num_inference_steps": 4, "width": 64, "height": 96, "seed": 5})
    beside = read(num_inference_steps=4, width=64, height=96, seed=5, output_format="png")
    assert within.model_dump(exclude={"output_format"}) == beside.model_dump(exclude={"output_format"})
