"""What an engine says of one attempt, as it is of the whole request. Pure. Times are in seconds."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from launcher.explanation import Explanation, Stage
from launcher.messages.client_messages import Accepted, Generate, Image, Preview, Progress
from launcher.messages.parameter_names import RANDOM_SEED
from launcher.requests.schedule.saved_steps import expected_steps

if TYPE_CHECKING:
    from engine.config.model_config import ModelConfig

Told = TypeVar("Told", bound=Accepted | Progress | Preview | Image)


class Usual(NamedTuple):
    """What a request has that does not say it: the model's defaults. width, height: pixels. blocks: of the model."""

    steps: int
    width: int
    height: int
    guidance: float
    blocks: int = 28

    @classmethod
    def of(cls, model: ModelConfig) -> Usual:
        """Those of a model."""
        blocks = model.transformer.num_layers
        return cls(model.default_steps, model.default_width, model.default_height, model.default_guidance, blocks)


def with_seed(request: Generate) -> Generate:
    """Draw the seed of a request that has none, so that every engine draws the same: with an idempotency key, the same
    as of any request of its caller with that key."""
    if request.seed not in (None, RANDOM_SEED):
        return request
    seed = secrets.randbelow(2**32)
    if request.idempotency_key is not None:
        seed = int.from_bytes(hashlib.sha256(_owned_key(request).encode()).digest()[:4], "big")
    return msgspec.structs.replace(request, seed=seed)


def routing_key(request: Generate) -> str | None:
    """What the same requests have in common, as routing knows it; None for one that is never the same as another."""
    return None if request.idempotency_key is None else hashlib.sha256(_owned_key(request).encode()).hexdigest()


def work_of(request: Generate, usual: Usual) -> float:
    """Reckon how much there is to do, in denoise steps times pixels, two for each with guidance, less what is
    expected to be saved of them."""
    steps = sum(sigma > 0 for sigma in request.sigmas) or (usual.steps if request.steps is None else request.steps)
    pixels = (request.width or usual.width) * (request.height or usual.height)
    guidance = usual.guidance if request.guidance is None else request.guidance
    steps_of_halves = expected_steps(request, steps, guided=bool(guidance), blocks=usual.blocks)
    return float(max(1, request.num_images * steps_of_halves * pixels))


def retold(reply: Told, request_id: str, attempt: int) -> Told:
    """Tell of a request by its client's name for it, and in which attempt that is."""
    return msgspec.structs.replace(reply, request_id=request_id, attempt=attempt)


def with_time_before(image: Image, lost_s: float, waited_s: float, restarts: int, moves: int) -> Image:
    """Add what had passed before the last attempt to what an image says of the time of its request.

    lost_s: until the work on it was lost for the last of so many times. waited_s: since then, where engines were
    stopped, full or missing.
    """
    timings = dict(image.timings)
    for name in ("queue", "total"):
        if name in timings:
            timings[name] += lost_s + waited_s
    told = image.explanation
    if told is not None:
        told = _explain_before(told, lost_s, waited_s, restarts, moves)
    return msgspec.structs.replace(image, timings=timings, explanation=told)


def _explain_before(told: Explanation, lost_s: float, waited_s: float, restarts: int, moves: int) -> Explanation:
    before_s = lost_s + waited_s
    stages = [
        msgspec.structs.replace(
            stage, begin_s=stage.begin_s + before_s, end_s=stage.end_s + before_s, attempt=stage.attempt + restarts
        )
        for stage in told.stages
    ]
    before = [
        Stage(name=name, begin_s=begin_s, end_s=end_s, attempt=attempt)
        for name, begin_s, end_s, attempt in (
            ("lost", 0.0, lost_s, max(1, restarts)),
            ("queue", lost_s, before_s, restarts + 1),
        )
        if end_s > begin_s
    ]
    parts = dict(told.parts)
    for name, seconds in (("lost", lost_s), ("queue", waited_s)):
        parts[name] = parts.get(name, 0.0) + seconds
    return msgspec.structs.replace(
        told,
        total_s=told.total_s + before_s,
        clock_s=told.clock_s - before_s,
        parts=parts,
        attempt=told.attempt + restarts,
        notes=(*_notes(restarts, moves), *told.notes),
        stages=(*before, *stages),
    )


def _notes(restarts: int, moves: int) -> Iterable[str]:
    if restarts:
        times = "once" if restarts == 1 else f"{restarts} times"
        yield f"engines, their ranks or content filters failed {times} before this attempt, which another engine made"
    if moves:
        others = "another engine" if moves == 1 else f"{moves} others, one after the other"
        yield f"the request went to {others}, before it had begun: where it was first was stopped, or busy for longer"


def _owned_key(request: Generate) -> str:
    return f"{len(request.caller or '')} {request.caller or ''} {request.idempotency_key}"
