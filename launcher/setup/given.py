"""Checks what a program gives `launch` and `launch_async`."""

from __future__ import annotations

import os
from collections.abc import Iterable

import msgspec

from engine.errors import ArgumentError, Krea2Error
from launcher.auto_mode.choice import is_auto
from launcher.auto_mode.prediction import Workload
from launcher.logs import log_event
from launcher.messages.configs import FrontendConfig
from launcher.setup.configure import configure
from launcher.setup.keywords import DEFAULTS, AnyPath, EngineOptions
from launcher.setup.nearest import nearest_to_given


def check_given(model: AnyPath | None, given: EngineOptions) -> tuple[FrontendConfig, tuple[str, ...]]:
    """Check all that can be checked without starting anything, which reads files, and downloads a model that is named
    by its Hugging Face repository. Returns warnings, too.

    Raises `ArgumentError`, `CheckpointError`, `LoraError`, or `LaunchError` if torch cannot be asked for GPUs.
    """
    options = {name: _in_plain_types(name, value) for name, value in {"model": model, **DEFAULTS, **given}.items()}
    auto = is_auto({**options, **{name: None for name in ("tp", "sp") if options[name] == 1}})
    try:
        config, _, problems = configure(
            options,
            auto=auto,
            workload=lambda model, _: Workload.default(model),
            tell=lambda engine, lines: log_event("parallel auto", mode=engine.degrees.name, because="\n".join(lines)),
        )
    except Krea2Error as error:
        if meant := nearest_to_given(options, error.message):
            error.message += f"; did you mean {meant}?"
            error.args = (error.message,)
        raise
    return msgspec.structs.replace(config, hash_files=True), problems


def _in_plain_types(name: str, value: object) -> object:
    """Return paths as text, and what may be one or several as several."""
    if name in ("loras", "offload", "filters"):
        several = (value,) if isinstance(value, str | os.PathLike) else value
        form = {"loras": "[NAME=]PATH[:STRENGTH]", "filters": "NAME[:VALUE][,KEY=VALUE]"}.get(name)
        if form is not None and not isinstance(several, Iterable):
            raise ArgumentError.of(name, f"a list of {form}", value)
        return tuple(map(_as_text, several)) if isinstance(several, Iterable) else several
    return _as_text(value)


def _as_text(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value
