"""Whether a request fits into the ranks' memory, and how many tokens of a step do: by arithmetic. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from engine.config.chat_template import MAX_PROMPT_TOKENS
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError
from engine.planning.step_memory import DecodeMemory, batch_bytes, decode_bytes, encode_bytes, packed_bytes
from launcher.requests.check import CheckedRequest
from launcher.requests.plan import Plan


def check_memory(
    plan: Plan,
    checked: CheckedRequest,
    model: ModelConfig,
    engine: EngineConfig,
    *,
    bytes_per_element: int,
    decode_memory: DecodeMemory,
    free: Sequence[int],
) -> None:
    """Raise `ArgumentError` if an image of the request, alone, needs more than the `free` bytes of some rank."""
    size = checked.width, checked.height
    needed = _needed(plan.segments, size, model, engine, bytes_per_element, decode_memory)
    for rank, (available, wanted) in enumerate(zip(free, needed, strict=True)):
        if wanted > available:
            raise ArgumentError(
                f"width × height {checked.width} × {checked.height} needs about {wanted / 1e9:.1f} GB on rank {rank}, "
                f"which has {available / 1e9:.1f} GB free",
                parameter="width",
            )


def default_needs(
    model: ModelConfig, engine: EngineConfig, *, bytes_per_element: int, decode_memory: DecodeMemory
) -> list[int]:
    """Bytes that each rank needs for a picture of the default size."""
    size = model.default_width, model.default_height
    tokens = model.image_tokens(*size) + MAX_PROMPT_TOKENS
    return _needed((tokens,), size, model, engine, bytes_per_element, decode_memory)


def token_budget(
    model: ModelConfig,
    engine: EngineConfig,
    most: int,
    *,
    bytes_per_element: int,
    decode_memory: DecodeMemory,
    free: Sequence[int],
) -> int:
    """The tokens of a step, at most `most`, for which every rank has memory beside a picture of the default size."""
    size = model.default_width, model.default_height
    decoding = decode_bytes(model, *size, decode_memory.bytes_per_element, decode_memory.limit)
    many = 100_000  # bytes grow with tokens as straight as it goes
    for_many = packed_bytes(model, many, engine.degrees, bytes_per_element)
    return max(1, min(most, (min(free) - decoding) * many // for_many))


def _needed(
    segments: Sequence[int],
    size: tuple[int, int],
    model: ModelConfig,
    engine: EngineConfig,
    bytes_per_element: int,
    decode_memory: DecodeMemory,
) -> list[int]:
    """Bytes by rank. Rank 0 may decode images while the next step runs, the others help it between two."""
    stepping = max(
        batch_bytes(model, segments, engine.degrees, bytes_per_element),
        encode_bytes(model, engine.tp, bytes_per_element),
    )
    decoding = decode_bytes(model, *size, decode_memory.bytes_per_element, decode_memory.limit)
    elsewhere = max(stepping, decoding) if engine.decodes_together else stepping
    return [stepping + decoding] + [elsewhere] * (engine.ranks - 1)
