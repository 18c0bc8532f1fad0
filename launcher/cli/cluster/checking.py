"""Checks what a config of a cluster says, as far as this machine has what it names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import ArgumentError, Krea2Error
from launcher.cli.cluster.document import APPLICATION, IMPORT_PATH
from launcher.cli.cluster.options import FILTERS_PATH
from launcher.cli.options.as_typed import LineError
from launcher.filters.spec import read_specs
from launcher.hub.names import HubName
from launcher.licence.notice import told_unfiltered
from launcher.messages.limits import Limits
from launcher.ray.args import ENGINE, INGRESS, ClusterArgs, HttpOptions
from launcher.setup.configure import engine_config

MAX_FILE_BYTES = 2**20
_PARTS = ("model", "transformer", "text_encoder", "vae", "tokenizer")
_NO_KEYS = "has no place there, since Serve stores and shows it: set KREA2_API_KEY where Ray is started on the nodes"


class Checked(NamedTuple):
    """What else there is to be told of arguments that are right."""

    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def check_arguments(args: Mapping[str, Any]) -> Checked:
    """Check `args:` of the application as `krea2 serve` checks its options, with its files if they are here.

    Raises what `settle` does.
    """
    read = ClusterArgs.of(args)
    elsewhere = [path for path in _files(read) if not os.path.exists(path)]
    if hub := [*_on_the_hub(read)]:
        notes = tuple(
            f"{name}, which is nothing here, is taken for a Hugging Face repository's: each node downloads it"
            for name in hub
        )
    elif elsewhere:
        notes = (f"not on this machine, and so not looked into: {', '.join(elsewhere)}",)
    else:
        from launcher.ray.settled import settle  # which takes long to import

        return Checked(settle(args).warnings)
    from launcher.ray.engine.loras import declared_loras

    engine = engine_config(read.engine)
    filters = read.engine.get("filters", ())
    told = told_unfiltered(engine.demo, filters)
    if not any(path in elsewhere for path in _of_filters(read)):
        read_specs(filters)
    Limits.of(read.engine.get("limits") or {})
    declared_loras({"loras": read.engine.get("loras", ())}, read.engine.get("lora_dir"))
    return Checked(() if told is None else (told,), notes)


def _on_the_hub(read: ClusterArgs) -> Iterator[str]:
    """What is named by its Hugging Face repository."""
    from launcher.requests.lora_files import parse_lora

    if (model := read.engine.get("model")) is not None and HubName.of_model(model):
        yield model
    yield from (path for lora in read.engine.get("loras", ()) if HubName.of_lora(path := parse_lora(lora).path))


def _files(read: ClusterArgs) -> Iterator[str]:
    """The absolute paths that are to be the same on all nodes."""
    from launcher.requests.lora_files import parse_lora

    named = [read.engine.get(part) for part in _PARTS]
    named += [parse_lora(lora).path for lora in read.engine.get("loras", ())]
    named += _of_filters(read)
    yield from (path for path in named if path is not None and os.path.isabs(path))


def _of_filters(read: ClusterArgs) -> list[str]:
    return [match["path"] for text in read.engine.get("filters", ()) if (match := FILTERS_PATH.match(text))]


def check_file(file: Path) -> Checked:
    """Check a config, of which people have changed something. Raises `LineError` for what is wrong with it."""
    try:
        return _check(file)
    except ArgumentError as error:
        raise LineError(error.message) from None


def _check(file: Path) -> Checked:
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    config = _load(file)
    for path, name in _keys(config):
        raise ArgumentError(f"{path or 'the file'} has {name}, which {_NO_KEYS}")
    try:
        ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ArgumentError(f"{where}: {' '.join(str(first['msg']).split())}, as Ray's schema says") from None
    applications = [each for each in config["applications"] if each.get("import_path") == IMPORT_PATH]
    if not applications:
        raise ArgumentError(f"applications has none whose import_path is {IMPORT_PATH}")
    checked = [_check_application(each, config.get("http_options") or {}) for each in applications]
    return Checked(
        tuple(warning for each in checked for warning in each.warnings),
        tuple(note for each in checked for note in each.notes),
    )


def _check_application(application: Mapping[str, Any], http: Mapping[str, Any]) -> Checked:
    where = f"application {application.get('name', APPLICATION)}"
    try:
        args = application.get("args") or {}
        host, listens = args.get("host", HttpOptions.host), http.get("host", HttpOptions.host)
        if host != listens:
            raise ArgumentError(f"host is {host}, and http_options.host {listens}: both must be the same")
        return _with_deployments(args, application.get("deployments") or ())
    except Krea2Error as error:
        raise ArgumentError(f"{where}: {error.message}", parameter=error.parameter) from None


def _with_deployments(args: Mapping[str, Any], deployments: Any) -> Checked:
    """Check arguments with the LoRAs that are declared with the engines."""
    for each in deployments:
        if each["name"] not in (ENGINE, INGRESS):
            raise ArgumentError.of("the name of a deployment", f"{ENGINE} or {INGRESS}", each["name"])
        declared = each.get("user_config")
        if each["name"] == ENGINE and declared is not None:
            from launcher.ray.engine.loras import declared_loras

            loras = declared_loras(declared, args.get("lora_dir"))
            texts = [f"{lora.name}={lora.path}:{lora.strength}" for lora in loras.values()]
            return check_arguments({**args, "loras": texts})
    return check_arguments(args)


def _load(file: Path) -> dict[str, Any]:
    import yaml

    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ArgumentError(f"{file}: {error.strerror or error}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ArgumentError(f"{file} is larger than {MAX_FILE_BYTES} bytes")
    try:
        config = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ArgumentError(f"{file} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise ArgumentError(f"{file} must be a map with applications, got {type(config).__name__}")
    return config


def _keys(config: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Find keys of clients, wherever they are."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            if str(name).lower() in ("api_key", "api_keys", "krea2_api_key"):
                yield path, str(name)
            yield from _keys(value, f"{path}.{name}" if path else str(name))
    elif isinstance(config, list):
        for number, value in enumerate(config):
            yield from _keys(value, f"{path}[{number}]")
