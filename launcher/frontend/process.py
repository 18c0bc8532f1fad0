"""Runs a process that is a front-end: starts its ranks, serves until it is stopped, and leaves nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from engine.errors import Krea2Error, LaunchError, ServerError
from launcher import awake, processes
from launcher.frontend.admission import key_files
from launcher.logs import take_stderr
from launcher.messages.configs import Ended, FrontendConfig, Started, Starting
from launcher.messages.encoding import as_krea2_error
from launcher.messages.message_parts import Stage
from launcher.messages.own_clients import OwnClients, own_address
from launcher.messages.rank_messages import Ready
from launcher.ranks.start import start_ranks
from launcher.run_folder import RunFolder
from launcher.service_manager import ServiceManager

if TYPE_CHECKING:
    from launcher.filters.checks import Checks
    from launcher.frontend.delivery.metrics import FilterMetrics
    from launcher.frontend.warm_up import AfterWarmUp
    from launcher.http.server_process import HttpServer


def run_frontend(after_warm_up: AfterWarmUp | None = None) -> None:
    """Be the front-end that `launch` started, and tell the parent why it ends."""
    take_stderr()
    config = processes.read_config(FrontendConfig)
    parent = processes.Reporter()
    try:
        number = serve_until_stopped(
            config,
            on_started=lambda address, _: parent.send(Started(address=address)),
            on_stage=lambda stage: parent.send(Starting(stage=stage)),
            is_child=True,
            after_warm_up=after_warm_up,
        )
        ended: Krea2Error | None = None if number is None else ServerError("the server was stopped")
    except Exception as error:
        ended = as_krea2_error(error)
    if ended is not None:
        parent.send(Ended(code=ended.code, message=ended.message, parameter=ended.parameter))


def serve_until_stopped(
    config: FrontendConfig,
    *,
    on_started: Callable[[str, Sequence[Ready]], None],
    on_stage: Callable[[Stage], None],
    is_child: bool,
    http: HttpServer | None = None,
    after_warm_up: AfterWarmUp | None = None,
) -> signal.Signals | None:
    """Start the ranks and be their front-end until SIGINT, SIGTERM or, as a child, the parent ends it.

    `http` runs meanwhile, until the front-end has ended: what it has made by then is still answered. SIGHUP ends
    it, too, unless there are files of keys, which are read again then. Returns the signal that ended it, if there
    was one. No process and no file is left when this returns or raises; raises what `Frontend` does, and
    `LaunchError` if `on_started` cannot write.
    """
    config, folder = with_run_folder(config)
    manager = ServiceManager() if is_child else ServiceManager.of(os.environ)
    ranks: list[processes.Child] = []
    received: signal.Signals | None = None
    unheard: LaunchError | None = None
    has_key_files = bool(config.key_limits or config.rpc_keys or (http is not None and http.key_files))
    stopped_by = [number for number in processes.SIGNALS if number != signal.SIGHUP or not has_key_files]
    read_again = asyncio.Event()
    if has_key_files:
        signal.signal(signal.SIGHUP, lambda *_: read_again.set())  # which comes before the loop runs

    async def run() -> None:
        stop, stop_now = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def stop_for(number: signal.Signals) -> None:
            nonlocal received
            if received is not None or not config.drain_s:
                stop_now.set()
            received = number
            stop.set()

        def parent_ended(_: bool) -> None:
            processes.exit_after(processes.ORDERLY_S)
            with suppress(RuntimeError):  # the loop has ended already
                loop.call_soon_threadsafe(stop_now.set)

        def announce(address: str, ranks: Sequence[Ready]) -> None:
            nonlocal unheard
            try:
                on_started(address, ranks)
            except OSError as error:
                unheard = LaunchError(f"the server's address cannot be written to stdout: {error.strerror}")
                stop_now.set()

        async def read_keys_again() -> None:
            while True:
                await frontend.warn_of_limits(() if http is None else http.key_names)
                await read_again.wait()
                read_again.clear()
                await key_files.read_again(frontend.key_files | (http.key_files if http is not None else {}))

        def on(number: signal.Signals, callback: Callable[..., object], *arguments: object) -> None:
            """Call back in the loop at a signal, at its next tick at the latest. Its own handlers would give way to the
            default when it ends."""

            def call_back(*_: object) -> None:
                with suppress(RuntimeError):  # the loop has ended already
                    loop.call_soon_threadsafe(callback, *arguments)

            signal.signal(number, call_back)

        for number in stopped_by:
            on(number, stop_for, number)
        if is_child:
            processes.watch_parent(parent_ended)
        own_clients = OwnClients() if http is None else http.own_clients
        if config.client_name is not None:
            own_clients.add(config.client_name)
        frontend = Frontend(
            config,
            ranks,
            on_started=announce,
            on_stage=on_stage,
            after_warm_up=after_warm_up,
            own_clients=own_clients,
            manager=manager,
            make_gate=_gate_maker(config),
        )
        if has_key_files:
            on(signal.SIGHUP, read_again.set)
        reading = loop.create_task(read_keys_again())
        await frontend.run(stop, stop_now)
        reading.cancel()

    try:
        start_ranks(config, ranks)
        if http is not None:
            http.start(own_address(config.run_folder), config.run_folder)
        from launcher.frontend.frontend import Frontend  # while the ranks import torch

        awake.run(run())
    finally:
        for number in {*processes.SIGNALS, signal.SIGHUP}:  # stopping is what they ask for
            signal.signal(number, signal.SIG_IGN)
        manager.stopping("ending its processes")
        processes.stop_all([*ranks, *(http.ask_to_stop() if http is not None else [])])
        folder.remove()
    if unheard is not None:
        raise unheard
    return received


def _gate_maker(config: FrontendConfig) -> Callable[[FilterMetrics], Checks] | None:
    """Say how to make the content filters that the configuration names, if it names any."""
    if not config.filters:
        return None
    from launcher.filters.gate import Gate  # in vain for most

    def make(metrics: FilterMetrics) -> Checks:
        return Gate(
            config.filters,
            fail_open=config.filter_fail_open,
            on_seconds=metrics.took,
            on_verdict=metrics.judged,
            on_failure=metrics.failed,
        )

    return make


def with_run_folder(config: FrontendConfig) -> tuple[FrontendConfig, RunFolder]:
    """Make a run folder, or hold the one that the configuration has. Returns the configuration with it, and it.

    Raises `LaunchError`.
    """
    folder = RunFolder(config.run_folder) if config.run_folder else RunFolder.make()
    return msgspec.structs.replace(config, run_folder=folder.path), folder
