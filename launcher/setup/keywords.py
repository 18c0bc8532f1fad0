"""Answers the keywords that `launch` does not have with those that were meant."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

_PARALLEL = 'tp, sp or cfg_parallel, or parallel="auto"'
# What other programs call them.
_MEANT = {
    **dict.fromkeys(("model_path", "model_id", "checkpoint", "pretrained_model_name_or_path"), "model"),
    "torch_dtype": "dtype",
    **dict.fromkeys(("tp_size", "tensor_parallel_size"), "tp"),
    **dict.fromkeys(("sp_size", "sp_degree", "ulysses_degree", "ulysses_size"), "sp"),
    **dict.fromkeys(("num_gpus", "gpus", "world_size"), _PARALLEL),
    **dict.fromkeys(
        ("enable_model_cpu_offload", "cpu_offload", "device_map", "max_memory"), "offload or memory_budget"
    ),
    "attention_backend": "attention",
    "quantization_config": "quantization",
    **dict.fromkeys(("lora", "lora_path", "lora_paths"), "loras"),
}

P = ParamSpec("P")
T = TypeVar("T")


def answering_others(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function say in its `TypeError` for a keyword that it does not have what may have been meant."""
    known = inspect.signature(function).parameters

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        for name in kwargs:
            if name not in known:
                raise TypeError(
                    f"{function.__name__}() got an unexpected keyword argument {name!r}{_hint(name, [*known])}"
                )
        return function(*args, **kwargs)

    return call


def _hint(name: str, known: list[str]) -> str:
    from launcher.client.parameters import KNOWN  # in time for an error alone

    if name in _MEANT:
        return f": here it is {_MEANT[name]}"
    if name in KNOWN:
        return f": it is one of client.generate(prompt, {name}=…)"
    near = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {near[0]!r}?" if near else ""
