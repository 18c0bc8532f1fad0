"""Options of `krea2 cluster`, made of what `args:` of a Serve config may have, and such arguments of what is given."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from engine.config.demo_checkpoints import DEMO_CHECKPOINTS, DEMO_LORAS
from engine.errors import ArgumentError
from launcher.cli.options.as_typed import OPTIONS_ALONE
from launcher.cli.options.command import Command
from launcher.cli.options.engine_options import option_of, parse_limits
from launcher.cli.serve import serve
from launcher.hub.names import HubName
from launcher.ray.args import MOST_REPLICAS, ClusterArgs, ClusterOptions, HttpOptions, known_options

Function = TypeVar("Function", bound=Callable[..., Any])

_REPLICAS = re.compile(r"(?P<least>[0-9]{1,9})(:(?P<most>[0-9]{1,9}))?", re.ASCII)
# Of what is a path on this machine, the arguments have the whole one: actors run in other folders.
_PATHS = (
    "model",
    "transformer",
    "text_encoder",
    "vae",
    "tokenizer",
    "lora_dir",
    "c2pa_certificate",
    "c2pa_key",
    "api_key_file",
    "images_folder",
)
# The file or folder that a filter is made of.
FILTERS_PATH = re.compile(r"\A(?P<name>(?:words|classifier):)(?P<path>.+?)(?=,[a-z][a-z0-9_-]*=|\Z)", re.DOTALL)
# Said by --replicas; and what is for relative paths.
_SAID_OTHERWISE = ("min_replicas", "max_replicas", "lora_dir")
_WHY_NO_LORA_DIR = "lora_dir: a cluster's LoRAs are declared for all engines, each file with --lora"
_REFUSED = "refused_"  # what the names of options of `krea2 serve` begin with that a cluster does not have
_CHANGES: dict[str, dict[str, Any]] = {
    "loras": {
        "help": "A LoRA, a file or in a Hugging Face repository, or demo-outlined, for requests to choose by NAME, "
        "which is the file's if there is none. May be repeated."
    },
    "host": {"help": "Where HTTP listens."},
    "api_key_file": {"help": "More keys, a line each: NAME KEY, or KEY alone.", "metavar": "FILE"},
    "tp": {"help": "Ranks that every matrix is split over: 1, 2 or 4.  [default: 1]"},  # under torchrun, too
    "max_body_bytes": {"default": HttpOptions.max_body_bytes},
    "max_surge_percent": {"default": ClusterOptions.max_surge_percent},
    "allowed_host": {"metavar": "NAME"},
    "allow_origin": {"metavar": "ORIGIN"},
    "public_url": {"metavar": "URL"},
    "warm_up_sizes": {
        "flag": "--warm-up",
        "metavar": "WIDTHxHEIGHT",
        "help": "A size to prepare GPUs for besides the checkpoint's default; may be repeated.",
    },
}


def cluster_options(*without: str, **changes: dict[str, Any]) -> Callable[[Function], Function]:
    """Add an option for each argument but those `without`. changes: what click gets instead of what the table says."""

    def add(command: Function) -> Function:
        for name, (default, known) in reversed(known_options().items()):
            if known.help is not None and name not in (*without, *_SAID_OTHERWISE):
                changed = _CHANGES.get(name, {}) | changes.get(name, {})
                command = option_of(name, default, known, **changed)(command)
        return command

    return add


class ClusterCommand(Command):
    """A command that says of each option of `krea2 serve` that a cluster does not have why that is."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        own = {flag for parameter in self.params for flag in parameter.opts}
        for theirs in serve.params:
            if isinstance(theirs, click.Option) and not theirs.hidden and not own & {*theirs.opts}:
                self.params.append(_refused(theirs))

    def _unknown(self, ctx: click.Context, error: click.NoSuchOption) -> str:
        have = [flag for each in self.params if not str(each.name).startswith(_REFUSED) for flag in each.opts]
        return super()._unknown(ctx, click.NoSuchOption(error.option_name, possibilities=have))


def replicas_of(text: str) -> dict[str, int]:
    """Read `N`, or `MIN:MAX`. Raises `ArgumentError`."""
    match = _REPLICAS.fullmatch(text.strip())
    if match is None:
        raise ArgumentError.of("replicas", "a number, as 4, or MIN:MAX, as 1:50", text)
    least, most = int(match["least"]), int(match["most"] or match["least"])
    if not 1 <= least <= most <= MOST_REPLICAS:
        allowed = f"at least 1 and at most {MOST_REPLICAS}, and MAX no less than MIN"
        raise ArgumentError.of("replicas", allowed, text)
    return {"min_replicas": least, "max_replicas": most}


def arguments_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Make `args:` of a command's options: those that differ from the defaults, as YAML has them.

    Raises `ArgumentError` for a value that is not allowed; opens no file.
    """
    known = known_options()
    given = {
        name: value
        for name, value in options.items()
        if name in known and value is not None and value != () and value != known[name][0]
    }
    if "limits" in given:
        given["limits"] = {name: _whole(value) for name, value in parse_limits(given["limits"]).items()}
    for name in _PATHS:
        if name in given and not (name == "model" and given[name] in DEMO_CHECKPOINTS):
            given[name] = whole_path(given[name])
    if "audit_log" in given:
        given["audit_log"] = os.path.abspath(given["audit_log"])  # which is made where there is none
    if "loras" in given:
        given["loras"] = tuple(map(_whole_lora, given["loras"]))
    if "filters" in given:
        given["filters"] = tuple(FILTERS_PATH.sub(_whole_match, text) for text in given["filters"])
    return ClusterArgs.of(given | replicas_of(options["replicas"])).given()


def whole_path(path: str) -> str:
    """The absolute path of what lies here; anything else as it is."""
    return os.path.abspath(path) if os.path.exists(path) else path


def _whole_match(match: re.Match[str]) -> str:
    return match["name"] + whole_path(match["path"])


def _whole_lora(text: str) -> str:
    from launcher.requests.lora_files import parse_lora  # which takes long to import

    lora = parse_lora(text)
    if lora.path in map(str, DEMO_LORAS.values()):  # which is elsewhere on other machines
        return text
    path = os.path.abspath(lora.path) if HubName.of_lora(lora.path) is None else lora.path
    return f"{lora.name}={path}:{lora.strength:g}"


def _whole(value: float) -> float:
    return int(value) if value.is_integer() else value


def _refused(theirs: click.Option) -> click.Option:
    name = str(theirs.name)

    def refuse(_context: click.Context, _option: click.Parameter, value: Any) -> None:
        if value is not None:
            raise ArgumentError(_in_flags(_why_not(name, value), theirs.opts[0]), parameter=name)

    kind: dict[str, Any] = {"is_flag": True, "flag_value": True, "default": None} if theirs.is_flag else {}
    flags = [*theirs.opts, f"{_REFUSED}{name}"]
    return click.Option(flags, hidden=True, expose_value=False, callback=refuse, **kind)


def _why_not(name: str, value: Any) -> str:
    if name == "lora_dir":
        return _WHY_NO_LORA_DIR
    try:
        ClusterArgs.of({name: value})
    except ArgumentError as error:
        return error.message
    return f"{name}: a cluster does not have it"


def _in_flags(message: str, flag: str) -> str:
    """Name options as they are typed, first the one that the message is about."""
    first, _, rest = message.partition(" ")
    if f"{flag}-".startswith(f"--{first.rstrip(':').replace('_', '-')}-"):
        first = flag + first[len(first.rstrip(":")) :]
    known = {name: f"--{name.replace('_', '-')}" for name in known_options() if "_" in name or name in OPTIONS_ALONE}
    return f"{first} {re.sub(r'[a-z_]+', lambda word: known.get(word[0], word[0]), rest)}"
