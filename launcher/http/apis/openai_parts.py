"""The parts of the images API's body that are objects, or more than one kind of value."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, WithJsonSchema, model_validator

from engine.step_cache.settings import METHODS
from launcher.http.answers.schemas import means
from launcher.requests.schedule.saved_steps import CACHES


class LoraChoiceBody(BaseModel, extra="forbid", strict=True, allow_inf_nan=False):
    """One of the `loras` of a request."""

    name: str = Field(description="The name by which GET /v1/loras lists it.")
    strength: float | None = Field(
        None,
        description="How strongly to apply it. Default: as it was loaded.",
        json_schema_extra=means("lora_strength"),
    )

    @model_validator(mode="before")
    @classmethod
    def _take_name(cls, given: object) -> object:
        return {"name": given} if isinstance(given, str) else given


class OutpaintBody(BaseModel, extra="forbid", strict=True):
    """How many pixels to add on each side."""

    left: int | None = Field(None, description="Pixels. Default: 0.")
    top: int | None = Field(None, description="Pixels. Default: 0.")
    right: int | None = Field(None, description="Pixels. Default: 0.")
    bottom: int | None = Field(None, description="Pixels. Default: 0.")


class CacheBody(BaseModel, extra="forbid", strict=True, allow_inf_nan=False):
    """Which steps are not computed, or not wholly, but forecast from earlier ones."""

    method: Annotated[str, WithJsonSchema({"type": "string", "enum": METHODS})] | None = Field(
        None,
        description="What is saved: most blocks of steps where the first blocks do nearly what they did before, as "
        "cache-dit's DBCache decides it; or whole steps, known beforehand, by forecasting their velocity. "
        "Default: blocks.",
    )
    warmup_steps: int | None = Field(
        None,
        description="Steps that are computed before any is saved.",
        json_schema_extra=means("cache_warmup_steps"),
    )
    max_consecutive: int | None = Field(
        None, description="The most steps saved in a row.", json_schema_extra=means("cache_max_consecutive")
    )
    order: int | None = Field(
        None,
        description="Of the forecast: 0 for the last value again, 1 for a straight line through the last two.",
        json_schema_extra=means("cache_order"),
    )
    max_cached: int | None = Field(
        None, description="The most steps saved altogether.", json_schema_extra=means("cache_max_cached")
    )
    first_blocks: int | None = Field(
        None,
        description="Of method blocks: the first blocks, which always run.",
        json_schema_extra=means("cache_first_blocks"),
    )
    last_blocks: int | None = Field(
        None,
        description="Of method blocks: the last blocks, which always run.",
        json_schema_extra=means("cache_last_blocks"),
    )
    threshold: float | None = Field(
        None,
        description="Of method blocks: how much the first blocks' work may have changed, as a fraction of it, in a "
        "step that is saved.",
        json_schema_extra=means("cache_threshold"),
    )


class PictureUrl(BaseModel, extra="allow", strict=True):
    """A picture as OpenAI's chats have it."""

    image_url: str | dict[str, Any] | None = Field(
        None, description="A data URL, or an object url of one. Default: null."
    )


Picture = str | PictureUrl | list[str | PictureUrl] | None
Cache = Annotated[str, WithJsonSchema({"type": "string", "enum": CACHES})] | CacheBody | None  # checked by `check`
