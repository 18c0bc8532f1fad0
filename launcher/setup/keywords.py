"""The keywords of `launch` and `launch_async`: their types, and answers to those that others would have."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from typing import ParamSpec, TypedDict, TypeVar, get_type_hints

from engine.config.engine_config import EngineConfig
from launcher.setup.configure import LaunchOptions

AnyPath = str | os.PathLike[str]


class EngineOptions(TypedDict, total=False):
    """What settles an engine besides the model: fields of `EngineConfig` and `LaunchOptions`, with these defaults."""

    transformer: AnyPath | None
    text_encoder: AnyPath | None
    vae: AnyPath | None
    tokenizer: AnyPath | None
    tp: int
    sp: int
    cfg_parallel: bool
    parallel: str | None
    device: str
    dtype: str
    variant: str | None
    share_gpu: bool
    quantization: str
    attention: str
    cuda_graphs: bool
    image_input: bool
    loras: AnyPath | Sequence[AnyPath]
    lora_lenient: bool
    merge_lora: bool
    lora_dir: AnyPath | None
    offload: str | Sequence[str]
    prefetch: int | None
    memory_budget: int | str | None
    vae_memory: int | str | None
    lora_memory: int | str | None
    limits: Mapping[str, float] | None
    start_timeout_s: float
    step_timeout_s: float
    warm_up: bool
    filters: str | Sequence[str]
    filter_fail_open: bool
    disclosure: bool
    c2pa_certificate: AnyPath | None
    c2pa_key: AnyPath | None
    c2pa_timestamp: str | None
    audit_log: AnyPath | None
    audit_content: bool


_TYPES = get_type_hints(EngineOptions)
DEFAULTS = {
    each.name: each.default for kind in (EngineConfig, LaunchOptions) for each in fields(kind) if each.name in _TYPES
}
_PARALLEL = 'tp, sp or cfg_parallel, or parallel="auto"'
# What other programs call them.
_MEANT = {
    **dict.fromkeys(("model_path", "model_id", "checkpoint", "pretrained_model_name_or_path"), "model"),
    "revision": 'behind the repository: model="owner/name@revision"',
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
    **dict.fromkeys(("filter", "content_filters", "safety_checker"), "filters"),
}

P = ParamSpec("P")
T = TypeVar("T")


def with_engine_options(function: Callable[P, T]) -> Callable[P, T]:
    """Give a function with `**options` the signature with all of them, which it is not given where they are not.

    It says in its `TypeError` for a keyword that it does not have what may have been meant.
    """
    signature = inspect.signature(function)
    model, *others, _ = signature.parameters.values()
    kind = inspect.Parameter.KEYWORD_ONLY
    options = [
        inspect.Parameter(name, kind, default=DEFAULTS[name], annotation=type_) for name, type_ in _TYPES.items()
    ]
    signature = signature.replace(parameters=[model, *options, *others])
    known = [*signature.parameters]

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        for name in kwargs:
            if name not in known:
                raise TypeError(
                    f"{function.__name__}() got an unexpected keyword argument {name!r}{_hint(name, known)}"
                )
        return function(*args, **kwargs)

    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def _hint(name: str, known: list[str]) -> str:
    from launcher.client.parameters import KNOWN  # in time for an error alone

    if name in _MEANT:
        return f": here it is {_MEANT[name]}"
    if name in KNOWN:
        return f": it is one of client.generate(prompt, {name}=…)"
    near = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {near[0]!r}?" if near else ""
