"""The keywords of `generate` and `stream`: listed, explained, and known by other programs' names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, get_type_hints

import msgspec
import numpy as np
import pytest

from engine.errors import ArgumentError
from launcher.client.async_client import AsyncClient
from launcher.client.client import Client
from launcher.client.parameters import INSTEAD, LoraParameters, OwnParameters, Parameters, make_request
from launcher.messages.client_messages import Generate
from launcher.messages.message_parts import CacheChoice, LoraChoice, Outpaint
from launcher.messages.parameter_names import ALIASES, GUIDANCE_IS_OFF

CALLS = (Client.generate, Client.stream, AsyncClient.generate, AsyncClient.stream)


def test_the_keywords_are_the_fields_of_the_messages_with_their_types() -> None:
    wire = get_type_hints(Generate)
    assert wire.pop("caller")  # which is the server's own to say
    keywords = get_type_hints(OwnParameters)
    assert keywords.pop("loras")  # which may be said in several ways
    assert (keywords.pop("image"), keywords.pop("mask"), keywords.pop("outpaint")) == (
        object,
        object,
        Mapping[str, int] | None,
    )
    assert keywords.pop("cache") == str | Mapping[str, Any]
    assert keywords.pop("sigmas") == Sequence[float]
    own = {"loras": tuple[LoraChoice, ...], "pictures": tuple[str, ...], "outpaint": Outpaint | None}
    own |= {"cache": str | CacheChoice, "sigmas": tuple[float, ...]}
    assert {"version": int, "prompt": str, **own, **keywords} == wire
    assert get_type_hints(LoraParameters) == {field.name: field.type for field in msgspec.structs.fields(LoraChoice)}
    assert {*get_type_hints(Parameters)} - {*get_type_hints(OwnParameters)} == {*ALIASES, "size"}


@pytest.mark.parametrize("call", CALLS)
def test_help_lists_all_parameters_with_types_and_defaults(call: Callable[..., Any]) -> None:
    parameters = dict(inspect.signature(call).parameters)
    names = [*get_type_hints(OwnParameters)]
    watched = ["callback", "progress"] if call.__name__ == "generate" else []
    assert [*parameters] == ["self", "prompt", *watched, *names, "other_names"]
    types, fields = get_type_hints(OwnParameters), {field.name: field for field in msgspec.structs.fields(Generate)}
    for name in names:
        assert parameters[name].annotation == types[name]
        known = fields[name].default if name in fields else None  # a picture's file
        assert name == "request_id" or parameters[name].default == known
    help_lines = (call.__doc__ or "").splitlines()
    for name in [*names, *ALIASES, "size"]:
        assert any(line.startswith(f"    {name}: ") and line.split(": ", 1)[1] for line in help_lines), name
    for name in watched:
        assert any(line.startswith(f"{name}: ") for line in help_lines)


def test_other_names_mean_the_same() -> None:
    mine, _, warnings = make_request("x", {"steps": 4, "guidance": 2.5, "num_images": 2, "width": 96, "height": 64}, "")
    theirs: Any = {"num_inference_steps": 4, "guidance_scale": 2.5, "num_images_per_prompt": 2, "size": "96x64"}
    theirs |= {"output_type": "pil", "return_dict": True, "generator": None, "negative_prompt": None}
    also, _, also_warnings = make_request("x", theirs, "")
    assert msgspec.structs.replace(also, request_id=mine.request_id) == mine
    assert warnings == also_warnings == ()
    off, _, warnings = make_request("x", {"guidance_scale": 1.0}, "")
    assert (off.guidance, warnings) == (0.0, (GUIDANCE_IS_OFF,))


def test_values_and_names_of_other_programs_are_read_as_everywhere() -> None:
    given: Any = {"seed": "42", "steps": 8.0, "guidance": "2.5", "num_outputs": "2", "size": "", "output_format": "JPG"}
    given |= {"background": "transparent", "quality": "ultra", "extra_body": {"output_quality": 60}}
    request, _, warnings = make_request("x", given, "")
    assert (request.seed, request.steps, request.guidance, request.num_images) == (42, 8, 2.5, 2)
    assert (request.output_format, request.output_compression, request.width) == ("jpeg", 60, None)
    assert warnings == ("background was ignored: images are opaque",)
    with pytest.raises(TypeError, match=r"^generate\(\) got an unexpected keyword argument 'zzz' in extra_body$"):
        make_request("x", {"extra_body": {"zzz": 1}}, "generate")  # type: ignore[typeddict-unknown-key]


def test_what_is_easily_said_otherwise_is_understood() -> None:
    given: Any = {"seed": np.int64(7), "guidance": np.float32(0.5), "output_format": "jpg", "loras": ["a"]}
    request, _, _ = make_request("x", given, "")
    assert (type(request.seed), request.seed, type(request.guidance), request.output_format) == (int, 7, float, "jpeg")
    assert request.loras == (LoraChoice(name="a"),)
    cached, _, _ = make_request("x", {"cache": {"warmup_steps": np.int64(3), "threshold": np.float32(0.5)}}, "")
    assert cached.cache == CacheChoice(warmup_steps=3, threshold=0.5)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("output_type", "np", "output_type is not taken: result.images are Pillow's"),
        ("callback_on_step_end", print, r"give callback=f, which is called as f\(step, steps, preview\)"),
        ("callback", print, "stream gives the events themselves"),
        ("generator", SimpleNamespace(initial_seed=lambda: 31), r"generator is not taken: give seed=31, whose noise"),
        ("cfg_scale", 0.5, "cfg_scale must be 1, which is off, or more, got 0.5"),
        ("loras", "a", "loras must be a list of"),
        ("loras", [{"strength": 1.0}], "loras must be a list of"),
    ],
)
def test_what_cannot_be_is_answered_with_what_can(name: str, value: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as error:
        make_request("x", {name: value}, "stream")  # type: ignore[misc]
    assert error.value.parameter == name
    if name in INSTEAD:
        make_request("x", {name: None}, "stream")  # type: ignore[misc]


def test_a_misspelt_name_is_answered_with_the_nearest_and_several_prompts_with_what_to_do() -> None:
    message = r"^generate\(\) got an unexpected keyword argument 'negativ_promt': did you mean 'negative_prompt'\?$"
    with pytest.raises(TypeError, match=message):
        make_request("x", {"negativ_promt": "y"}, "generate")  # type: ignore[typeddict-unknown-key]
    with pytest.raises(TypeError, match=r"argument 'zzz'; help\(client\.stream\) lists all$"):
        make_request("x", {"zzz": 1}, "stream")  # type: ignore[typeddict-unknown-key]
    with pytest.raises(ArgumentError, match=r"^prompt must be one text \(for several, make a request of each\), got "):
        make_request(["a", "b"], {}, "generate")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_that_is_taken_for_a_pipeline_says_what_to_do(kind: type[Client] | type[AsyncClient]) -> None:
    client: Any = kind("ipc:///nonexistent/krea2", **({"connect": False} if kind is Client else {}))
    with pytest.raises(TypeError, match=r"client\.generate\(prompt\) makes pictures"):
        client("a red circle", num_inference_steps=8)
    for name, hint in {
        "load_lora_weights": r": launch\(model, loras=",
        "to": r": it is launch that settles it, as launch\(model, device=",
        "enable_model_cpu_offload": r'memory_budget="12GB"\)$',
        "zzz": "$",
    }.items():
        with pytest.raises(AttributeError, match=f"{kind.__name__}' object has no attribute '{name}'.*{hint}"):
            getattr(client, name)
    if isinstance(client, Client):
        client.close()
