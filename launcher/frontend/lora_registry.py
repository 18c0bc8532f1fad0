"""Which LoRAs there are, under which names, and who uses them: at first those of the configuration. No ranks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError, LoraError
from engine.lora.files import AdapterFile
from engine.step import Adapter
from launcher.logs import log_event
from launcher.messages.client_messages import LoadedLora
from launcher.messages.configs import FrontendConfig
from launcher.requests.lora_files import describe_skipped, open_lora


@dataclass(eq=False)
class LoraEntry:
    """A LoRA that the ranks hold, or will after their next steps.

    `users`: requests that have chosen it and have not ended. `losses`: of ranks that were lost while they loaded it.
    """

    name: str
    file: str
    strength: float
    adapter: Adapter
    opened: AdapterFile
    users: set[int] = field(default_factory=set)
    losses: int = 0

    def describe(self, size: int) -> LoadedLora:
        """Describe it to clients. size: bytes that it takes of each rank."""
        return LoadedLora(
            name=self.name,
            file=self.file,
            strength=self.strength,
            family=self.opened.family,
            modules=self.opened.modules,
            bytes=size,
        )


def open_registry(config: FrontendConfig, model: ModelConfig) -> LoraRegistry:
    """The LoRAs of the configuration, whose values somebody has checked already, and a word on those to be merged.

    Raises `LoraError`.
    """
    registry, lenient = LoraRegistry(config.limits.max_loras), config.engine.lora_lenient
    for lora in config.loras:
        opened = open_lora(lora.path, model, lenient=lenient, values=False)
        path = Path(lora.path).resolve()
        registry.reserve(lora.name)
        registry.add(lora.name, opened, path=str(path), file=path.name, strength=lora.strength, lenient=lenient)
    for merged, strength in config.engine.merge_loras:
        opened = open_lora(merged, model, lenient=lenient, values=False)
        log_event("lora merged", file=Path(merged).name, strength=strength, **log_fields(opened))
    return registry


class LoraRegistry:
    """The LoRAs of one server. A name that is being loaded is taken; one that is removed is free at once.

    What requests still use is kept after its removal, until the last of them has ended.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._ids = itertools.count()
        self._held: dict[int, LoraEntry] = {}  # by adapter's id
        self._named: dict[str, LoraEntry] = {}  # of those, what requests may choose
        self._reserved: set[str] = set()
        self._lost: dict[str, LoraError] = {}  # why names are gone that nobody removed, the newest last

    def __iter__(self) -> Iterator[LoraEntry]:
        """All that ranks hold or will hold, in the order in which they came."""
        return iter(list(self._held.values()))

    def __getitem__(self, adapter_id: int) -> LoraEntry:
        return self._held[adapter_id]

    @property
    def named(self) -> tuple[LoraEntry, ...]:
        """What requests may choose."""
        return tuple(self._named.values())

    @property
    def strengths(self) -> dict[str, float]:
        return {name: entry.strength for name, entry in self._named.items()}

    @property
    def ids(self) -> dict[str, int]:
        return {name: entry.adapter.adapter_id for name, entry in self._named.items()}

    def reserve(self, name: str) -> None:
        """Keep a name, and a place, for what is about to be added. Raises `ArgumentError` if there is none."""
        if name in self._named or name in self._reserved:
            raise ArgumentError(f"name {name!r} is taken by a LoRA that is loaded", parameter="name")
        if len(self._held) + len(self._reserved) >= self._most:
            raise ArgumentError(
                f"{self._most} LoRAs are loaded, and more are not allowed: unload one", parameter="name"
            )
        self._reserved.add(name)
        self._lost.pop(name, None)

    def give_up(self, name: str) -> None:
        """The name that was reserved is free again."""
        self._reserved.discard(name)

    def add(self, name: str, opened: AdapterFile, *, path: str, file: str, strength: float, lenient: bool) -> LoraEntry:
        """Add what has been opened, under a name that was reserved. path: for the ranks; file: for people."""
        self._reserved.remove(name)
        adapter = Adapter(next(self._ids), path, lenient)
        entry = self._held[adapter.adapter_id] = self._named[name] = LoraEntry(name, file, strength, adapter, opened)
        return entry

    def remove(self, name: str) -> LoraEntry:
        """Let nobody choose it any more; the ranks hold it until it is `forgotten`. Raises `ArgumentError`."""
        entry = self._named.pop(name, None)
        if entry is None:
            raise ArgumentError(f"name must be that of a LoRA that is loaded, got {name[:80]!a}", parameter="name")
        return entry

    def forget(self, adapter_id: int) -> LoraEntry | None:
        """The ranks hold it no more; None if that was known."""
        entry = self._held.pop(adapter_id, None)
        if entry is not None and self._named.get(entry.name) is entry:
            del self._named[entry.name]
        return entry

    def lose(self, adapter_id: int, reason: LoraError) -> None:
        """The ranks cannot hold it. Who chooses it from now on is told why."""
        entry = self.forget(adapter_id)
        if entry is not None:
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
        return bool(entry.users) or self._named.get(entry.name) is entry

    def use(self, request: int, names: Iterable[str]) -> None:
        """A request has chosen these."""
        for name in names:
            self._named[name].users.add(request)

    def end(self, request: int) -> list[LoraEntry]:
        """The request has ended. Returns those that nobody wants any more."""
        used = [entry for entry in self._held.values() if request in entry.users]
        for entry in used:
            entry.users.remove(request)
        return [entry for entry in used if not self.is_wanted(entry)]


def log_fields(opened: AdapterFile) -> dict[str, Any]:
    """What a log says of a LoRA's file."""
    described: dict[str, Any] = {"family": opened.family, "modules": opened.modules}
    return described | ({"skipped": describe_skipped(opened)} if opened.skipped else {})
