"""What `generate` and `stream` take in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Required, TypedDict

from engine.errors import ArgumentError
from launcher.messages.client_messages import Generate, LoraChoice


class LoraParameters(TypedDict, total=False):
    """One of the `loras` of a request, with the fields of `LoraChoice`."""

    name: Required[str]
    strength: float | None


class Parameters(TypedDict, total=False):
    """The keywords of `generate` and `stream`, one for each field of `Generate`: 15. A LoRA may be a name alone."""

    request_id: str
    seed: int | None
    steps: int | None
    guidance: float | None
    negative_prompt: str | None
    mu: float | None
    width: int | None
    height: int | None
    num_images: int
    priority: int
    timeout_s: float | None
    output_format: str
    metadata: bool
    preview_every: int | None
    loras: Sequence[LoraParameters | str]


def make_request(prompt: str, parameters: Parameters) -> Generate:
    """Make the message for these parameters. Their values are checked where it is received, as every client's.

    Raises `ArgumentError` unless loras are a list of names and of maps with a name and, maybe, a strength.
    """
    loras = parameters.get("loras", ())
    allowed = 'a list of {"name": …, "strength": …} or of names'
    if isinstance(loras, str | Mapping) or not isinstance(loras, Sequence):
        raise ArgumentError.of("loras", allowed, loras)
    choices = []
    for lora in loras:
        choice: Any = {"name": lora} if isinstance(lora, str) else lora
        if not isinstance(choice, Mapping) or "name" not in choice or choice.keys() - {"name", "strength"}:
            raise ArgumentError.of("loras", allowed, lora)
        choices.append(LoraChoice(**choice))
    fields: dict[str, Any] = {**parameters, "loras": tuple(choices)}
    return Generate(prompt=prompt, **fields)
