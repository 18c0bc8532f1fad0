"""Settles what can be settled before an engine starts: a checked configuration of its front-end."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.nearby import INDEX
from engine.config.demo_checkpoints import DEMO_LORAS
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.config.options import check_options, option, options_of, path, switch
from engine.errors import ArgumentError
from launcher.auto_mode.choice import choose_mode
from launcher.auto_mode.prediction import Workload, block_format
from launcher.disclosure.disclosure import Disclosure
from launcher.hub.models import locate
from launcher.messages.configs import DisclosureConfig, FilterSpec, FrontendConfig
from launcher.messages.limits import Limits, is_number, parse_bytes
from launcher.setup.usual_names import own_device, own_dtype

MAX_TIMEOUT_S = 7 * 86_400  # a week


def _seconds(default: float, help: str, **more: Any) -> Any:
    allowed = f"above 0 and at most {MAX_TIMEOUT_S}"
    return option(default, help, allowed, lambda v: is_number(v) and 0 < v <= MAX_TIMEOUT_S, kind=float, **more)


@dataclass(frozen=True)
class LaunchOptions:
    """The options of `krea2` and `launch` beside those of `EngineConfig`, a field each. Raises `ArgumentError`.

    parallel, limits, loras, lora_dir and filters are checked where they are used: by `is_auto`, `Limits.of`,
    `with_loras` and `read_specs`.
    """

    parallel: str | None = option(
        None,
        "Choose --tp, --sp and --cfg-parallel: the fastest by prediction that fits into this machine's GPUs.",
        metavar="auto",
    )
    loras: Sequence[str] = option(
        (),
        "A LoRA, a file or in a Hugging Face repository, or demo-outlined: generate uses it for every image, serve "
        "lets requests choose it by NAME, which is the file's if there is none. May be repeated.",
        flag="--lora",
        metavar="[NAME=]PATH[:STRENGTH]",
        repeated=True,
    )
    merge_lora: bool = option(
        False, "Add the --lora files to the weights as these are loaded: for every image, and at no cost afterwards."
    )
    lora_dir: str | None = option(
        None,
        "Let clients load LoRA files from this folder, and no others.  [default: clients may load none]",
        metavar="FOLDER",
    )
    limits: Mapping[str, float] | None = option(
        None, "Change a limit, as max_side=2048.", flag="--limit", metavar="NAME=VALUE", repeated=True
    )
    start_timeout_s: float = _seconds(600.0, "Seconds for ranks to load.", flag="--start-timeout")
    step_timeout_s: float = _seconds(300.0, "Seconds for one step at most.", flag="--step-timeout")
    warm_up: bool = switch(True)
    filters: Sequence[str] = option(
        (),
        "A content filter: words, classifier, moderation, chat or python (docs/filters.md). What it blocks is answered "
        "by an error. May be repeated.",
        flag="--filter",
        metavar="NAME[:VALUE][,KEY=VALUE]",
        repeated=True,
    )
    filter_fail_open: bool = switch(
        False,
        "Let through what a filter cannot check, because it is down or late, and what the --audit-log cannot be "
        "written about, in place of failing the request.",
    )
    disclosure: bool = switch(
        True,
        "Let files say, by XMP, that a model drew the picture, even those that leave out prompt and settings.",
        flag="--disclosure/--no-disclosure",
    )
    c2pa_certificate: str | None = path(
        "Sign a C2PA manifest into images with this certificate, in PEM, and those up to its authority's: needs the "
        "extra c2pa.",
        metavar="FILE",
    )
    c2pa_key: str | None = path("The private key of --c2pa-certificate, in PEM.", metavar="FILE")
    c2pa_timestamp: str | None = option(
        None,
        "An authority (RFC 3161) that is asked for the time of each signature.",
        "an http or https URL",
        lambda v: isinstance(v, str) and v.startswith(("http://", "https://")) and v.isprintable(),
        metavar="URL",
    )
    audit_log: str | None = path(
        "Write a line about each picture that leaves, and about what filters refuse, to files in this folder "
        "(docs/audit.md); with a server, take reports of pictures, too.  [default: nothing is written]",
        "a folder",
        metavar="FOLDER",
    )
    audit_content: bool = switch(
        False, "Have the --audit-log keep prompts themselves, and pictures that were reported, and not only hashes."
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.audit_content and self.audit_log is None:
            raise ArgumentError("audit_content needs an audit_log to keep it in", parameter="audit_content")


def engine_config(options: Mapping[str, Any]) -> EngineConfig:
    """Take the engine's part of the options, whose sizes may be text such as 16GB. Raises `ArgumentError`."""
    own = _part(EngineConfig, options)
    for name, (_, known) in options_of(EngineConfig).items():
        if name in own and known.metavar == "SIZE":
            own[name] = parse_bytes(name, own[name])
    for name, read in (("device", own_device), ("dtype", own_dtype)):
        if name in own:
            own[name] = read(own[name])
    return EngineConfig(**own)


def _part(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are fields of a dataclass."""
    return {each.name: options[each.name] for each in fields(kind) if each.name in options}


def configure(
    options: Mapping[str, Any],
    *,
    auto: bool,
    workload: Callable[[ModelConfig, Limits], Workload],
    tell: Callable[[EngineConfig, Sequence[str]], None],
    ranks: int | None = None,
) -> tuple[FrontendConfig, ModelConfig, tuple[str, ...]]:
    """Check everything that can be checked without starting anything, after downloading a model that is named only by
    its Hugging Face repository. Returns warnings, too.

    options: of `EngineConfig` and `LaunchOptions`, by name. auto: choose the mode that is fastest for the workload, and
    `tell` it; ranks: the number of them, where they have been started. Raises `ArgumentError`, `CheckpointError`,
    `LoraError`, or `LaunchError` if torch cannot be asked for GPUs.
    """
    engine = engine_config(options)
    launching = LaunchOptions(**_part(LaunchOptions, options))
    disclosure = DisclosureConfig(
        xmp=launching.disclosure,
        c2pa_certificate=launching.c2pa_certificate,
        c2pa_key=launching.c2pa_key,
        c2pa_timestamp=launching.c2pa_timestamp,
    )
    of_disclosure = Disclosure.of(disclosure).warnings  # the front-end makes another
    filters: tuple[FilterSpec, ...] = ()
    if launching.filters:
        from launcher.filters.spec import read_specs  # in vain for most

        filters = read_specs(launching.filters)
    engine = locate(engine)
    checkpoint = CheckpointFiles.open(engine)
    checkpoint.close()  # its headers have been read
    model = checkpoint.config
    model.check_parallel(engine.tp, engine.sp)
    limits = Limits.of(launching.limits or {})
    if auto:
        engine, lines = choose_mode(checkpoint, engine, workload(model, limits), ranks=ranks)
        tell(engine, lines)
    config = FrontendConfig(
        engine=engine,
        limits=limits,
        start_timeout_s=launching.start_timeout_s,
        step_timeout_s=launching.step_timeout_s,
        warm_up=launching.warm_up,
        disclosure=disclosure,
        block_format=block_format(checkpoint, engine),
        filters=filters,
        filter_fail_open=launching.filter_fail_open,
        audit_log=launching.audit_log,
        audit_content=launching.audit_content,
    )
    warnings = _taken_for_demos(engine, launching.loras) + of_disclosure
    if model.variant_note is not None:
        warnings += (model.variant_note,)
    if launching.loras or launching.merge_lora or launching.lora_dir is not None:
        from launcher.requests.lora_files import with_loras  # which takes long to import, often in vain

        config, of_loras = with_loras(
            config, model, launching.loras, lora_dir=launching.lora_dir, merge=launching.merge_lora
        )
        warnings += of_loras
    return config, model, warnings


def _taken_for_demos(engine: EngineConfig, loras: Sequence[str]) -> tuple[str, ...]:
    """Warn that a demo was taken where a checkpoint, or a LoRA, of the same name lies here."""
    warnings = []
    if engine.demo is not None and engine.model is not None and os.path.isfile(os.path.join(engine.model, INDEX)):
        warnings = [
            f"model {engine.model} is the demo; for the checkpoint in the folder of this name, give ./{engine.model}"
        ]
    for name in DEMO_LORAS:
        if os.path.exists(name) and any(name in re.split("[=:]", lora) for lora in loras):
            warnings.append(f"lora {name} is the demos' own; for what lies here under this name, give ./{name}")
    return tuple(warnings)
