"""What a model that was made for other sizes draws for those that clients send by habit, as OpenAI's. Pure."""

from __future__ import annotations

from collections.abc import Container

from engine.config.model_config import ModelConfig

OPENAI_SIZES = (
    (256, 256),
    (512, 512),
    (1024, 1024),
    (1536, 1024),
    (1024, 1536),
    (1792, 1024),
    (1024, 1792),
)


def own_size(
    asked: tuple[int, int] | None, model: ModelConfig, *, usual: Container[tuple[int, int]] | None = OPENAI_SIZES
) -> tuple[int, int] | None:
    """Give the model's own size of about the shape that was asked for, in pixels; None for a size that it was made for,
    or that nobody sends by habit. usual: those that are sent by habit; None for all."""
    domain = model.size_domain
    if domain is None or asked is None or domain.has(*asked) or (usual is not None and asked not in usual):
        return None
    return domain.nearest(*asked, model.size_multiple)


def describe_own_size(asked: tuple[int, int] | None, model: ModelConfig) -> str | None:
    """Say what `own_size` gives, and why; None where it gives nothing."""
    own = own_size(asked, model)
    if own is None or asked is None or model.size_domain is None:
        return None
    return (
        f"size {asked[0]}x{asked[1]} was drawn as {own[0]}x{own[1]}, since it is outside of what "
        f"{model.size_domain.described()}; width and height are taken as they are"
    )
