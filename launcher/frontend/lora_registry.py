"""Knows which LoRAs there are, under which names, and which requests use them. Sends nothing to ranks."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError, LoraError
from engine.lora.files import AdapterFile
from engine.step import Adapter
from launcher.logs import log_event
from launcher.messages.configs import FrontendConfig
from launcher.provenance.file_hashes import FileHash
from launcher.requests.lora_files import open_lora, schedules_of, shown_file
from launcher.requests.schedule.noise_levels import LoraSchedules


@dataclass(eq=False)
class LoraEntry:
    """A LoRA that the ranks hold, or will after their next steps.

    users: numbers of the requests that have chosen it and have not ended. loading: whether the ranks were told to load
    it, and have not said that they hold it; losses: of ranks meanwhile. asked: the client's ZMQ identity and the id
    of its `LoadLora`, until it is answered. hash: the file's, for pictures to tell.
    """

    name: str
    file: str  # as people are told of it
    strength: float  # of requests that choose it and name none
    adapter: Adapter
    opened: AdapterFile
    users: set[int] = field(default_factory=set)
    loading: bool = False
    losses: int = 0
    hash: FileHash | None = None
    asked: tuple[bytes, str] | None = None


def open_registry(config: FrontendConfig, model: ModelConfig) -> LoraRegistry:
    """Register the LoRAs of the configuration, whose values have been checked already, and log those to be merged.

    Raises `LoraError` for a file that cannot be read or does not fit the model.
    """
    registry, lenient = LoraRegistry(config.limits.max_loras), config.engine.lora_lenient
    for lora in config.loras:
        opened = open_lora(lora.path, model, lenient=lenient, values=False)
        # not resolved: beside a link's target, as in the hub's cache, there is no config that could say the scale
        path, file = os.path.abspath(opened.path), shown_file(lora.path, config.lora_dir)
        registry.reserve(lora.name)
        registry.add(lora.name, opened, path=path, file=file, strength=lora.strength, lenient=lenient)
    for merged, strength in config.engine.merge_loras:
        opened = open_lora(merged, model, lenient=lenient, values=False)
        file = shown_file(merged, config.lora_dir)
        log_event("lora merged", file=file, strength=strength, **log_fields(opened))
        if strength:
            registry.merged[file] = opened
    return registry


class LoraRegistry:
    """Keeps the LoRAs of one server. A name that is being loaded is taken; one that is removed is free at once.

    held: all that ranks hold or will hold, by adapter's id, in the order in which they came; one that requests use is
    kept after its removal until the last of them has ended. named: what requests may choose. merged: what is part of
    the weights, by file.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._ids = itertools.count()
        self.held: dict[int, LoraEntry] = {}
        self.named: dict[str, LoraEntry] = {}
        self.merged: dict[str, AdapterFile] = {}
        self._reserved: set[str] = set()
        self._lost: dict[str, LoraError] = {}  # why names are gone that nobody removed, the newest last

    @property
    def opened(self) -> dict[str, AdapterFile]:
        """All files that change images, or may: by name those that requests may choose, by file the merged ones."""
        return self.merged | {name: entry.opened for name, entry in self.named.items()}

    def made_for(self) -> LoraSchedules:
        """Say for which steps the files were made."""
        return schedules_of({name: entry.opened for name, entry in self.named.items()}, self.merged)

    def reserve(self, name: str) -> None:
        """Keep a name, and a place, for what is about to be added. Raises `ArgumentError` if either is taken."""
        if name in self.named or name in self._reserved:
            raise ArgumentError(f"name {name!r} is taken by a LoRA that is loaded", parameter="name")
        if len(self.held) + len(self._reserved) >= self._most:
            allowed = f"{self._most} LoRAs are loaded, and more are not allowed: unload one"
            raise ArgumentError(allowed, parameter="name")
        self._reserved.add(name)
        self._lost.pop(name, None)

    def give_up(self, name: str) -> None:
        """Free a name that was reserved."""
        self._reserved.discard(name)

    def add(self, name: str, opened: AdapterFile, *, path: str, file: str, strength: float, lenient: bool) -> LoraEntry:
        """Add what has been opened, under a name that was reserved. path: for the ranks; file: for people."""
        self._reserved.remove(name)
        adapter = Adapter(next(self._ids), path, lenient)
        entry = self.held[adapter.adapter_id] = self.named[name] = LoraEntry(name, file, strength, adapter, opened)
        return entry

    def remove(self, name: str) -> LoraEntry:
        """Let nobody choose it any more; ranks hold it until `forget`. Raises `ArgumentError` for an unknown name."""
        if name not in self.named:
            raise ArgumentError(f"name must be that of a LoRA that is loaded, got {name[:80]!a}", parameter="name")
        return self.named.pop(name)

    def forget(self, adapter_id: int) -> None:
        """Note that the ranks hold it no more."""
        entry = self.held.pop(adapter_id, None)
        if entry is not None and self.named.get(entry.name) is entry:
            del self.named[entry.name]

    def lose(self, entry: LoraEntry, reason: LoraError) -> None:
        """Forget what the ranks cannot hold. Who chooses it from now on is told why."""
        self.forget(entry.adapter.adapter_id)
        self._lost[entry.name] = reason
        if len(self._lost) > self._most:
            del self._lost[next(iter(self._lost))]

    def check_lost(self, names: Iterable[str]) -> None:
        """Raise `LoraError` if one of these was lost, and has not been loaded again."""
        for name in names:
            if name in self._lost:
                raise LoraError(self._lost[name].message)

    def is_wanted(self, entry: LoraEntry) -> bool:
        """Whether requests may choose it, or have."""
        return bool(entry.users) or self.named.get(entry.name) is entry


def log_fields(opened: AdapterFile) -> dict[str, Any]:
    """Describe a LoRA's file for a log: what was left out of it is worth a warning."""
    described: dict[str, Any] = {"family": opened.family, "modules": opened.modules}
    if opened.schedule is not None:
        described["made_for"] = opened.schedule.describe()
    return described | ({"level": "warning", "left_out": opened.left_out} if opened.left_out else {})
