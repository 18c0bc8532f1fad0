"""Loads, lists and unloads LoRAs for clients while serving, and tells the ranks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.config.demo_checkpoints import DEMO_LORAS
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError, Krea2Error, LoraError
from engine.lora.files import AdapterFile
from engine.step import Step
from launcher.frontend.delivery.clients import Clients
from launcher.frontend.dispatcher import Dispatcher
from launcher.frontend.lora_registry import LoraEntry, LoraRegistry, log_fields
from launcher.logs import log_event
from launcher.messages.client_messages import ListLoras, LoadLora, LoraRequest, Loras
from launcher.messages.configs import FrontendConfig
from launcher.messages.encoding import as_krea2_error
from launcher.messages.message_parts import LoadedLora, MadeFor, MergedLora
from launcher.provenance.made_with import MadeWith
from launcher.requests.check import check_strength
from launcher.requests.lora_files import MAX_NAME, check_name, open_lora, path_inside, shown_file
from launcher.requests.rank_memory import RankMemory
from launcher.threads import in_own_thread

_READ_S = 120.0  # for a file to be read and checked
_MOST_LOSSES = 2  # of ranks while they loaded a LoRA, after which it counts as the reason


class LoraService:
    """Keeps the registry and the ranks in agreement.

    check_requests: raises `ArgumentError` if requests that have not ended would not fit into this memory.
    on_lost: called with the numbers of requests that cannot be made any more, and why. spawn: runs a coroutine.
    made_with: what is known of the model's files, to which it adds those of LoRAs.
    """

    def __init__(
        self,
        config: FrontendConfig,
        model: ModelConfig,
        registry: LoraRegistry,
        clients: Clients,
        dispatcher: Dispatcher,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        check_requests: Callable[[RankMemory], None],
        on_lost: Callable[[set[int], Krea2Error], None],
        made_with: MadeWith,
    ) -> None:
        self._config, self._model = config, model
        self._clients, self._dispatcher = clients, dispatcher
        self._spawn, self._check_requests, self._on_lost = spawn, check_requests, on_lost
        self.registry, self._made_with = registry, made_with
        for entry in registry.held.values():
            entry.hash = made_with.hashes.want(entry.opened.path)
        self._reading = asyncio.Lock()  # one file at a time

    def made_with(self, request: int) -> dict[str, Any]:
        """Return what a request's pictures are to say of the model and the LoRAs."""
        used = [entry for entry in self.registry.held.values() if request in entry.users]
        return self._made_with.described({entry.name: entry.hash for entry in used if entry.hash is not None})

    def listed(self) -> tuple[LoadedLora, ...]:
        """Describe what requests may choose."""
        return tuple(
            LoadedLora(
                name=entry.name,
                file=entry.file,
                strength=entry.strength,
                family=entry.opened.family,
                modules=entry.opened.modules,
                bytes=self._bytes(entry.opened),
            )
            for entry in self.registry.named.values()
        )

    def merged(self) -> tuple[MergedLora, ...]:
        """Describe what was added to the weights at the start."""
        merged, folder = self._config.engine.merge_loras, self._config.lora_dir
        return tuple(MergedLora(file=shown_file(path, folder), strength=strength) for path, strength in merged)

    # ---- what clients ask for

    def handle(self, client: bytes, message: LoraRequest) -> None:
        """Do what a client asks for, and answer, or refuse; a LoRA to load is answered once the ranks hold it."""
        try:
            folder = self._config.lora_dir
            is_parent = self._config.parent_loads_loras and client == self._config.client_name
            if isinstance(message, ListLoras):
                self._reply(client, message.request_id)
            elif folder is None and not is_parent:
                raise ArgumentError(
                    "clients may load and unload LoRAs only if the server has a --lora-dir (lora_dir of launch)"
                )
            elif isinstance(message, LoadLora):
                if (lost := self._dispatcher.status.given_up) is not None:
                    raise lost.with_traceback(None)  # which each raise would add to
                check_strength("strength", message.strength, "strength")
                if is_parent or folder is None:
                    path, folder = str(DEMO_LORAS.get(message.path, message.path)), None
                else:
                    path = path_inside(folder, message.path)
                self.registry.reserve(check_name(message.name))
                self._spawn(self._load(client, message, path, folder))
            else:
                entry = self.registry.remove(message.name)
                log_event("lora unloaded", name=entry.name, users=len(entry.users))
                if not entry.users:
                    self._unload(entry)
                self._reply(client, message.request_id)
        except Exception as error:
            self._refuse(client, message, error)

    def _refuse(self, client: bytes, message: LoraRequest, error: Exception) -> None:
        error = as_krea2_error(error)
        if isinstance(message, LoadLora):
            name = message.name[:MAX_NAME]
            log_event("lora refused", level="warning", name=name, code=error.code, message=error.message)
        self._clients.send_failure(client, message.request_id, error)

    async def _load(self, client: bytes, message: LoadLora, path: str, folder: str | None) -> None:
        """Read the file in a thread, add it, and have the ranks load it; its client hears when they have."""
        lenient = self._config.engine.lora_lenient
        try:
            async with self._reading, asyncio.timeout(_READ_S):
                opened = await in_own_thread(lambda: open_lora(path, self._model, lenient=lenient))
            self._check_memory(self._bytes(opened), beside_requests=True)
        except Exception as error:
            self.registry.give_up(message.name)
            if isinstance(error, TimeoutError):
                error = LoraError(f"{message.path}: could not be read within {_READ_S:g} s")
            elif isinstance(error, LoraError) and folder is not None:  # where that lies is not the client's business
                error = LoraError(error.message.replace(path, message.path).replace(f"{folder}/", ""))
            self._refuse(client, message, error)
            return
        given = path if folder is None else str(DEMO_LORAS.get(message.path, Path(folder, message.path)))
        file, strength = shown_file(given, folder), message.strength
        entry = self.registry.add(message.name, opened, path=path, file=file, strength=strength, lenient=lenient)
        entry.asked = client, message.request_id
        entry.hash = self._made_with.hashes.want(opened.path)
        if self._dispatcher.status.answering:
            self._load_on_ranks(entry)
            self._dispatcher.send_steps()

    def _load_on_ranks(self, entry: LoraEntry) -> None:
        entry.loading = True
        self._dispatcher.load(entry.adapter, self._bytes(entry.opened))

    def _unload(self, entry: LoraEntry) -> None:
        if self._dispatcher.status.answering:
            self._dispatcher.scheduler.unload(entry.adapter.adapter_id)
            self._dispatcher.send_steps()

    def _reply(self, client: bytes, request_id: str) -> None:
        loadable = self._config.lora_dir is not None
        opened = self.registry.opened
        loras = Loras(
            request_id=request_id,
            loras=self.listed(),
            merged=self.merged(),
            loadable=loadable,
            left_out={name: file.left_out for name, file in opened.items() if file.left_out},
            made_for={
                name: MadeFor(**asdict(file.schedule)) for name, file in opened.items() if file.schedule is not None
            },
        )
        self._clients.send(client, loras)

    def _reply_to_who_asked(self, entry: LoraEntry) -> None:
        if entry.asked is not None:
            self._reply(*entry.asked)
            entry.asked = None

    def end(self, request: int) -> None:
        """Unload what only this request used, which has ended: its jobs were cancelled if they were not done."""
        for entry in self.registry.held.values():
            if request in entry.users:
                entry.users.remove(request)
                if not self.registry.is_wanted(entry):
                    self._unload(entry)

    # ---- what becomes of the ranks

    def ranks_ready(self) -> None:
        """Load all that are wanted, before any job, and as far as memory goes: the ranks hold none yet."""
        if self._config.hash_files:
            self._made_with.hashes.begin()
        too_large: list[tuple[LoraEntry, LoraError]] = []
        for adapter_id, entry in list(self.registry.held.items()):
            if not self.registry.is_wanted(entry):
                self.registry.forget(adapter_id)
                self._reply_to_who_asked(entry)
                continue
            try:
                self._check_memory(self._bytes(entry.opened), beside_requests=False)
            except LoraError as error:
                too_large.append((entry, error))
            else:
                self._load_on_ranks(entry)
        for entry, problem in too_large:  # which may send steps, so that it comes last
            self._lose(entry, problem)

    def ranks_lost(self, error: Krea2Error) -> bool:
        """Give up the LoRA that is known to be the reason. Returns whether there is one."""
        loading = [entry for entry in self.registry.held.values() if entry.loading]  # in the order of their steps
        if not loading:
            return False
        for entry in loading:
            entry.loading = False
        # a rank may fail at one before others have said that they hold the one before it
        entry = next((entry for entry in loading if entry.adapter.path == error.parameter), loading[0])
        entry.losses += 1
        if not isinstance(error, LoraError) and entry.losses < _MOST_LOSSES:
            return False
        self._lose(entry, LoraError(f"the ranks could not load it: {error.message}"))
        return True

    def step_done(self, step: Step) -> None:
        """Note what the ranks hold now, and what no more."""
        for adapter in step.load:
            entry = self.registry.held[adapter.adapter_id]
            entry.loading, entry.losses = False, 0
            size, fields = self._bytes(entry.opened), log_fields(entry.opened)
            log_event("lora loaded", name=entry.name, file=entry.file, strength=entry.strength, bytes=size, **fields)
            self._reply_to_who_asked(entry)
        for adapter_id in step.unload:
            self.registry.forget(adapter_id)

    def _lose(self, entry: LoraEntry, error: LoraError) -> None:
        error = LoraError(f"{entry.file}: {error.message.replace(entry.adapter.path, entry.file)}")
        log_event("lora lost", level="error", name=entry.name, message=error.message)
        self.registry.lose(entry, error)
        if entry.asked is not None:
            self._clients.send_failure(*entry.asked, error)
        self._on_lost(set(entry.users), error)

    # ---- memory

    @property
    def bytes_held(self) -> int:
        """Bytes on each rank of all LoRAs that it holds or will hold."""
        return sum(self._bytes(entry.opened) for entry in self.registry.held.values())

    def _bytes(self, opened: AdapterFile) -> int:
        return self._dispatcher.status.step_memory.lora_bytes(opened)

    def _check_memory(self, size: int, *, beside_requests: bool) -> None:
        """Raise `LoraError` if a rank has not `size` bytes free beside a picture, or beside requests that wait."""
        memory = self._dispatcher.status.step_memory
        if memory.free is None:
            return
        for rank, (available, needed) in enumerate(zip(memory.free, memory.needed_by_default(), strict=True)):
            if available - size < needed:
                raise LoraError(
                    f"it needs {size / 1e9:.2f} GB on rank {rank}, which has {available / 1e9:.2f} GB free, of which "
                    f"a picture takes {needed / 1e9:.2f} GB: unload another, or start with less"
                )
        if beside_requests:
            try:
                self._check_requests(memory.without(size))
            except ArgumentError as error:
                raise LoraError(f"requests that wait would not fit beside it: {error.message}") from None
