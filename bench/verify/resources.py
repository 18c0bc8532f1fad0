"""What a machine has room for, and how long what was asked for may take on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from bench.measure.timing import time_calls
from bench.verify.subject.models import Model, Request, operations
from engine.device.devices import free_bytes

_ROOM = 1.1  # of the weights: what a few images take besides
_PRODUCT = 1024  # rows and columns of the matrices that are timed; on a GPU 8 times as many
_SLOWER, _FORWARD_S = 10, 0.1  # than a matrix product, on a CPU; of a forward of whatever size
DTYPES = ("float32", "bfloat16")


def possible_dtypes(model: Model, chosen: str, device: torch.device) -> tuple[list[str], list[str]]:
    """In which to verify, and why not in others."""
    if chosen != "auto":
        return [chosen], []
    if device.type == "cpu":
        return ["float32"], []
    problem = lacking_for(model, "float32", device)
    return (list(DTYPES), []) if problem is None else (["bfloat16"], [f"float32, {problem}"])


def lacking_for(model: Model, dtype: str, device: torch.device) -> str | None:
    """What memory there is too little of, for this dtype; None if there is enough."""
    return _lacking(model.engine_bytes(dtype), device) or lacking_for_diffusers(model, dtype, device)


def lacking_for_diffusers(model: Model, dtype: str, device: torch.device) -> str | None:
    """The same of diffusers alone, whose weights pass through host memory."""
    size = max(model.diffusers_bytes(dtype).values())
    return _lacking(size, device) or _lacking(size, torch.device("cpu"))


def _lacking(size: int, device: torch.device) -> str | None:
    """Say why weights of `size` bytes, and the work on them, have no room on a device; None if they have."""
    free, needed = free_bytes(device), _ROOM * size
    if free is None or needed <= free:
        return None
    return f"since {needed / 1e9:.3g} GB are needed on {device.type} and {free / 1e9:.3g} GB are free"


def describe_time(
    model: Model, requests: Mapping[str, Sequence[Request]], device: torch.device, reference: torch.device | None
) -> str:
    """How long it may take, of diffusers' images and as long again for the engine's, which take less: from as fast as a
    matrix product is here to `_SLOWER` times that and what a forward takes at least."""
    least, forwards = 0.0, 0
    for dtype, asked in requests.items():
        work = operations(model, asked)
        least += 2 * work / _operations_a_second(device, dtype)
        each = sum(one.steps * (1 + (one.guidance > 0)) for one in asked)
        forwards += 2 * each
        if dtype == "bfloat16" and reference is not None:
            least += work / _operations_a_second(reference, "float32")
            forwards += each
    images = sum(map(len, requests.values()))
    between = _in_words(least, _SLOWER * least + _FORWARD_S * forwards)
    return (
        f"{images} image{'s' if images > 1 else ''} on each side: {between}, by how long a matrix product takes here; "
        "loading comes on top, and each mode of several ranks"
    )


def _in_words(least: float, most: float) -> str:
    """Show a range of seconds."""
    (low, unit), (high, other) = map(_in_unit, (least, most))
    return f"{low} to {high} {unit}" if unit == other else f"{low} {unit} to {high} {other}"


def _in_unit(seconds: float) -> tuple[int, str]:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return round(seconds / size), unit
    return max(1, round(seconds)), "seconds"


def _operations_a_second(device: torch.device, dtype: str) -> float:
    side = _PRODUCT if device.type == "cpu" else 8 * _PRODUCT
    matrix = torch.ones((side, side), device=device, dtype=getattr(torch, dtype))
    (seconds,) = time_calls(lambda: matrix @ matrix, 1, device)
    return 2.0 * side**3 / max(seconds, 1e-9)
