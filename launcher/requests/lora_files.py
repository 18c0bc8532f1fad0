"""Finds and checks LoRA files, as the command line and clients name them, before a rank hears of them."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import msgspec

from engine.config.demo_checkpoints import DEMO_LORAS
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError, CheckpointError, LoraError, printable
from engine.lora.files import AdapterFile, open_adapter
from engine.lora.folders import PEFT_CONFIG, file_in
from launcher.hub.loras import find_lora
from launcher.hub.names import HubName
from launcher.messages.configs import FrontendConfig, LoraFile
from launcher.requests.check import check_strength
from launcher.requests.rank_memory import RankMemory
from launcher.requests.schedule.noise_levels import LoraSchedules

MAX_FILE_BYTES = 8 * 2**30  # to be read whole before it is used; a LoRA of rank 256 for every layer has 4 GiB
MAX_NAME = 100  # characters
_INSIDE = "relative to the server's --lora-dir, and a file in there"
_LONGEST_PATH = 4096  # what Linux takes
_WITH_STRENGTH = re.compile(r"(?P<path>.+):(?P<strength>[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+))", re.DOTALL)
_WITH_NAME = re.compile(r"(?P<name>[^=/]*)=(?P<path>.*)", re.DOTALL)


def parse_lora(text: str) -> LoraFile:
    """Read `[NAME=]PATH[:STRENGTH]`. The default name is the file's without its suffix, the default strength 1.

    PATH may be one of `DEMO_LORAS`; one whose own name has a `=` is to be written with a folder before it. It may be in
    a Hugging Face repository, as `HubName.of_lora` reads it: see `located`. Raises `ArgumentError`.
    """
    with_strength = _WITH_STRENGTH.fullmatch(text)
    path, strength = with_strength.group("path", "strength") if with_strength else (text, "1")
    with_name = _WITH_NAME.fullmatch(path)
    name, path = with_name.group("name", "path") if with_name else (default_name(path), path)
    if not path:
        raise ArgumentError.of("lora", "[NAME=]PATH[:STRENGTH]", text)
    check_name(name, "lora")
    checked = check_strength("the strength of a LoRA", float(strength), "lora")
    return LoraFile(name=name, path=str(DEMO_LORAS.get(path, path)), strength=checked)


def default_name(path: str) -> str:
    """What a LoRA is called: as its file, without the suffix, or as its Hugging Face repository."""
    hub_name = HubName.of_lora(path)
    return Path(path).stem if hub_name is None else hub_name.lora


def located(lora: LoraFile) -> LoraFile:
    """The same with a path on this machine, where its file is downloaded to if it is in a Hugging Face repository and
    not in the cache. Raises `ArgumentError` if it cannot be had."""
    return msgspec.structs.replace(lora, path=find_lora(lora.path, most_bytes=MAX_FILE_BYTES))


def with_loras(
    config: FrontendConfig, model: ModelConfig, loras: Sequence[str], *, lora_dir: str | None, merge: bool
) -> tuple[FrontendConfig, tuple[str, ...]]:
    """Check files, and return the configuration with these LoRAs, for requests to choose or to be merged, and warnings.
    Files that are in a Hugging Face repository are downloaded.

    Raises `ArgumentError` or `LoraError`.
    """
    if isinstance(loras, str) or not all(isinstance(lora, str) for lora in loras):
        raise ArgumentError.of("loras", "a list of [NAME=]PATH[:STRENGTH]", loras)
    if merge and not loras:
        raise ArgumentError("merge_lora needs a lora", parameter="merge_lora")
    if lora_dir is not None and not os.path.isdir(lora_dir):
        raise ArgumentError.of("lora_dir", "a folder", lora_dir)
    files, engine = tuple(map(parse_lora, loras)), config.engine
    if not merge and len(files) > config.limits.max_loras:
        allowed = f"at most {config.limits.max_loras} LoRAs may be loaded"
        raise ArgumentError(f"{allowed}, got {len(files)}", parameter="lora")
    for name, count in Counter(file.name for file in files).items():
        if not merge and count > 1:
            raise ArgumentError(f"two LoRAs are called {name!r}: name one with NAME=PATH", parameter="lora")
    files = tuple(map(located, files))
    opened = [open_lora(file.path, model, lenient=engine.lora_lenient) for file in files]
    warned = [(file.path, adapter) for file, adapter in zip(files, opened, strict=True) if adapter.left_out]
    changes: dict[str, object] = {"loras": files}
    if merge:
        merged = tuple((file.path, file.strength) for file in files)
        changes = {"engine": replace(engine, merge_loras=merged)}
    elif files and engine.memory_budget is not None:
        # budgets are for GPUs, so where the device is still to be found, that is what the dtype is taken of
        memory = RankMemory(model, engine, "cpu" if engine.device == "cpu" else "cuda")
        size = sum(map(memory.lora_bytes, opened))
        if engine.lora_memory is not None and engine.lora_memory < size:
            raise ArgumentError.of("lora_memory", f"at least the {size} bytes that the LoRAs take", engine.lora_memory)
        changes["engine"] = replace(engine, lora_memory=engine.lora_memory or size)
    folder = None if lora_dir is None else os.path.realpath(lora_dir)
    warnings = tuple(f"{path}: {adapter.left_out}" for path, adapter in warned)
    return msgspec.structs.replace(config, lora_dir=folder, **changes), warnings


def open_lora(path: str, model: ModelConfig, *, lenient: bool, values: bool = True) -> AdapterFile:
    """Read a file, or the one of a folder, and check names, shapes and, with `values`, that these are finite.

    What is returned is closed: it knows what the file holds. Raises `LoraError`.
    """
    file = str(file_in(path))
    try:
        os.path.realpath(file).encode()  # as ranks and clients are told of it, who take UTF-8 alone
        found = os.stat(file)
        if not stat.S_ISREG(found.st_mode):  # reading from a pipe might never end
            raise LoraError(f"{file}: is not a file")
        if found.st_size > MAX_FILE_BYTES:
            raise LoraError(f"{file}: must be at most {MAX_FILE_BYTES} bytes, got {found.st_size}")
        with closing(open_adapter(file, model, lenient=lenient)) as opened:
            if values:
                opened.check_finite()
            return opened
    except CheckpointError as error:  # from the values of a file that was changed since it was opened
        raise LoraError(error.message) from None
    except OSError as error:
        raise LoraError(f"{file}: {error.strerror}") from None
    except ValueError as error:  # a path with a zero in it, or bytes that are no UTF-8
        raise LoraError(printable(f"{file}: {error}")) from None


def path_inside(folder: str, path: str) -> str:
    """Resolve what a client may load: one of `DEMO_LORAS`, or a file in the folder, or in one that this holds, of which
    neither it nor the config beside it is a link that leads out. The file keeps the name that it has there.

    Raises `ArgumentError`, and `LoraError` for a folder without a LoRA, which tell nothing of what lies outside.
    """
    if path in DEMO_LORAS:
        return os.path.realpath(DEMO_LORAS[path])
    root = os.path.realpath(folder)
    fits = 0 < len(path) <= _LONGEST_PATH and "\0" not in path
    if fits and not os.path.isabs(path) and ".." not in Path(path).parts:
        given = os.path.normpath(os.path.join(root, path))
        if HubName.of_lora(path) is not None and not os.path.lexists(given):
            here = "there is none; of Hugging Face's repositories, the server loads those of --lora when it starts"
            raise ArgumentError(f"path must be {_INSIDE}, got {path!a}: {here}", parameter="path")
        if _is_inside(root, given):
            try:
                file = file_in(given)
            except LoraError as error:
                raise LoraError(error.message.replace(printable(given), printable(path))) from None
            beside = str(file.parent / PEFT_CONFIG)
            if all(_is_inside(root, read) for read in (str(file), beside)) and os.path.realpath(file) != root:
                return os.path.join(os.path.realpath(file.parent), file.name)
    raise ArgumentError.of("path", _INSIDE, path)


def _is_inside(root: str, path: str) -> bool:
    return os.path.commonpath((root, os.path.realpath(path))) == root


def shown_file(path: str, folder: str | None) -> str:
    """Name a LoRA's file, or folder, as people are told of it, whoever loads it: one of `DEMO_LORAS` as there,
    one in the folder that clients may load from relative to that, any other by its bare name."""
    for name, file in DEMO_LORAS.items():
        if path == str(file):
            return name
    above, name = os.path.split(os.path.abspath(path))
    real = Path(os.path.realpath(above), name)  # what a link is called, not what it leads to
    root = None if folder is None else Path(os.path.realpath(folder))
    return name if root is None or root not in real.parents else str(real.relative_to(root))


def check_name(name: str, parameter: str = "name") -> str:
    """Return a name that requests, URLs and lists can carry. Raises `ArgumentError` for others."""
    fits = len(name) <= MAX_NAME and name.isprintable() and name == name.strip() and "/" not in name
    if not fits or not name.strip("."):
        allowed = f"1 to {MAX_NAME} printable characters without a slash or spaces around them"
        raise ArgumentError(f"the name of a LoRA must be {allowed}, got {name[:MAX_NAME]!a}", parameter=parameter)
    return name


def schedules_of(opened: Mapping[str, AdapterFile], merged: Mapping[str, AdapterFile]) -> LoraSchedules:
    """Say for which steps files were made. opened: of LoRAs that requests may choose, by name; merged: by file."""
    known = ({name: file.schedule for name, file in files.items()} for files in (opened, merged))
    return LoraSchedules(*({name: each for name, each in one.items() if each is not None} for one in known))


def read_schedules(config: FrontendConfig, model: ModelConfig) -> LoraSchedules:
    """Say it of the LoRAs of a configuration, whose files are readable. Raises `LoraError`."""
    lenient, folder = config.engine.lora_lenient, config.lora_dir

    def opened(path: str) -> AdapterFile:
        return open_lora(path, model, lenient=lenient, values=False)

    named = {lora.name: opened(lora.path) for lora in config.loras}
    merged = {shown_file(path, folder): opened(path) for path, strength in config.engine.merge_loras if strength}
    return schedules_of(named, merged)


def describe_scales(opened: AdapterFile) -> str:
    """Say what a LoRA is multiplied by at strength 1, and which place says so; empty for what has no scale."""
    parts = []
    for place, scales in opened.scales.items():
        low, high = f"{min(scales):.4g}", f"{max(scales):.4g}"
        layers = f" in {len(scales)}" if len(opened.scales) > 1 else ""
        parts.append(f"{low if low == high else f'{low} to {high}'}{layers} ({place or 'no alpha given'})")
    return f"scale {', '.join(parts)}" if parts else ""
