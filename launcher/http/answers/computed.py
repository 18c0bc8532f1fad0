"""What of an image's steps was computed, in answers: of images with step caching, or with a window of guidance."""

from __future__ import annotations

from collections.abc import Iterable

from launcher.http.answers.schemas import Schema, integer, many, object_schema
from launcher.messages.message_parts import Computed

_HALF = integer("Blocks that the prompt's half ran, or the negative prompt's.", 28)
COMPUTED: Schema = object_schema(
    {
        "block_evaluations": integer("How often a block of the transformer ran, for either half.", 216),
        "of": integer("How often it would have run without.", 480),
        "blocks": integer("Of the transformer.", 28),
        "steps": many(
            many(_HALF, "By half: the prompt's, then that of the negative prompt where there is guidance."),
            "Blocks that ran, by step.",
        ),
    }
) | {"description": "What was computed of its steps, if the request asked for a cache or a window of guidance."}
COMPUTED_OF_ALL: Schema = many(COMPUTED, "By image: what was computed of its steps, if the request asked to save some.")


def computed_object(computed: Computed) -> dict[str, object]:
    """Tell what was computed of an image."""
    return {
        "block_evaluations": computed.block_evaluations,
        "of": computed.of,
        "blocks": computed.blocks,
        "steps": computed.steps,
    }


def of_image(computed: Computed | None) -> dict[str, object]:
    """Make the field `computed` of an image, if there is anything to tell."""
    return {} if computed is None else {"computed": computed_object(computed)}


def of_all(computed: Iterable[Computed | None]) -> dict[str, object]:
    """Make the field `computed` of an answer that tells of all its images in one."""
    told = [computed_object(each) for each in computed if each is not None]
    return {"computed": told} if told else {}
