"""Makes click options of the fields of `EngineConfig` and `LaunchOptions`, and a configuration of what is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
import msgspec

from engine.config.degrees import PARALLEL_DEGREES
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.config.options import Option, options_of
from engine.errors import ArgumentError, printable
from launcher.auto_mode.choice import find_devices, is_auto
from launcher.auto_mode.prediction import Workload
from launcher.cli.options.command import MODEL
from launcher.cli.options.numbers import NUMBER, WHOLE_NUMBER
from launcher.messages.configs import FrontendConfig
from launcher.messages.limits import Limits
from launcher.ranks import torchrun
from launcher.setup.configure import LaunchOptions, configure

Command = TypeVar("Command", bound=Callable[..., Any])

# Where the command line does not list options in the order of the table: each before another one.
_BEFORE = {"parallel": "device", "loras": "lora_lenient", "merge_lora": "offload", "lora_memory": "vae_memory"}
_TABLE: dict[str, tuple[Any, Option]] = {**options_of(EngineConfig), **options_of(LaunchOptions)}


def table_options(*names: str, **changes: Any) -> Callable[[Command], Command]:
    """Add options of the table to a command, in this order. changes: what click gets instead of what the table says,
    such as a help of the command's own."""

    def add(command: Command) -> Command:
        for name in reversed(names):
            command = option_of(name, *_TABLE[name], **changes)(command)
        return command

    return add


def option_of(
    name: str, default: Any, known: Option, /, *, flag: str | None = None, **changes: Any
) -> Callable[[Command], Command]:
    """Make a command's option of one in a table. flag: what it is called on the command line, None for what the table
    says; changes: see `table_options`."""
    flag = flag or known.flag or f"--{name.replace('_', '-')}"
    flags = (flag, "-m") if name == "model" else (flag,)
    return click.option(*flags, name, **_settings(name, default, known) | changes)


def model_argument(command: Command) -> Command:
    """Add an argument that is the same as --model, by which the command gets it."""
    return click.argument(MODEL, metavar="[MODEL]", required=False)(command)


def engine_options(command: Command) -> Command:
    """Add all the options of a command that starts an engine, which hands what it gets to `configure_engine`."""
    names: list[str] = []
    for name, (_, known) in _TABLE.items():
        if known.help is not None and name != "lora_dir":  # which is for servers alone
            names.insert(names.index(_BEFORE[name]) if name in _BEFORE else len(names), name)
    return table_options(*names)(command)


def _settings(name: str, default: Any, known: Option) -> dict[str, Any]:
    """What click gets of an option."""
    settings: dict[str, Any] = {"help": known.help, "metavar": known.metavar, "multiple": known.repeated}
    if isinstance(default, bool):
        return settings | {"is_flag": True, "default": default}
    if isinstance(default, str | float):
        settings["default"] = default
    if name == "offload":
        settings["callback"] = _split
    return settings | {"type": {int: WHOLE_NUMBER, float: NUMBER}.get(known.kind, known.kind)}


def _split(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[str, ...]:
    return tuple(part.strip().replace("_", "-") for part in text.split(",")) if text else ()


def check_device(engine: EngineConfig) -> None:
    """Raise `ArgumentError`, as a rank would, where CUDA is asked for and missing: before what takes long to start."""
    if engine.device == "cuda":
        find_devices(engine)


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Pick the options that were given or have a default."""
    return {name: value for name, value in options.items() if value is not None}


def configure_engine(
    options: Mapping[str, Any], workload: Callable[[ModelConfig, Limits], Workload]
) -> tuple[FrontendConfig, ModelConfig]:
    """Do what `configure` does for a command's options, among torchrun's processes too, with its warnings on stderr."""
    options = given(options)
    auto = is_auto(options)
    ranks = torchrun.external_ranks()
    count = 1 if ranks is None else ranks.total
    sp, groups = options.get("sp", 1), 1 + options["cfg_parallel"]
    if ranks is not None and count not in PARALLEL_DEGREES:
        raise ArgumentError(f"torchrun must start 1, 2 or 4 processes, on all machines together, and started {count}")
    tp = options.setdefault("tp", max(1, count // (sp * groups)) if sp > 0 and not auto else 1)
    if ranks is not None and tp * sp * groups != count and not auto:
        product, got = ("tp · sp · 2", f"{tp} · {sp} · 2") if groups > 1 else ("tp · sp", f"{tp} · {sp}")
        raise ArgumentError(
            f"{product} must be {count}, the number of processes that torchrun started, got {got}", parameter="tp"
        )
    config, model, warnings = configure(
        options | {"limits": parse_limits(options["limits"])},
        auto=auto,
        workload=workload,
        tell=lambda _, lines: click.echo("\n".join(map(printable, lines)), err=True),
        ranks=None if ranks is None else count,
    )
    for warning in warnings:
        click.echo(printable(f"warning: {warning}"), err=True)
    if model.variant_is_assumed:
        kind = "Turbo" if model.is_distilled else "Raw"
        click.echo(f"note: the checkpoint does not say what it is, {kind} is assumed: see --variant", err=True)
    if ranks is None:
        return config, model
    if (advice := torchrun.tp_warning(config.engine.tp, ranks)) is not None:
        click.echo(f"warning: {advice}", err=True)
    host = ranks.host if ranks.local < ranks.total else None
    return msgspec.structs.replace(config, run_folder=ranks.run_folder, external_ranks=True, ranks_host=host), model


def parse_limits(assignments: tuple[str, ...]) -> dict[str, float]:
    """Read `NAME=VALUE` of each. Raises `ArgumentError`."""
    values = {}
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        try:
            values[name] = float(value.encode("ascii"))
        except ValueError:
            raise ArgumentError.of("limit", "NAME=VALUE with a number", assignment) from None
    return values
