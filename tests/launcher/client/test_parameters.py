"""What Python's keywords are, the wire's fields are."""

from __future__ import annotations

from typing import get_type_hints

import msgspec

from launcher.client.parameters import LoraParameters, Parameters
from launcher.messages.client_messages import Generate, LoraChoice


def test_the_keywords_are_the_fields_of_the_messages_with_their_types() -> None:
    wire = {field.name: field.type for field in msgspec.structs.fields(Generate)} | {"request_id": str}
    keywords = get_type_hints(Parameters)
    assert keywords.pop("loras")  # which may be said in several ways
    assert {"version": int, "prompt": str, "loras": tuple[LoraChoice, ...], **keywords} == wire
    assert get_type_hints(LoraParameters) == {field.name: field.type for field in msgspec.structs.fields(LoraChoice)}
