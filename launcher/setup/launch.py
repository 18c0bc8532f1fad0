"""Starts an engine from Python, in processes of its own: a front-end, which starts its ranks."""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import msgspec

from engine.errors import ArgumentError, Krea2Error, LaunchError, RankError, ServerError, error_from_code
from launcher.auto_mode.choice import is_auto
from launcher.auto_mode.prediction import Workload
from launcher.awake import AwakeClock
from launcher.client.bars import is_watched
from launcher.frontend.process import with_run_folder
from launcher.logs import log_event
from launcher.messages.configs import Ended, FrontendConfig, Started, Starting, decode_frontend_report
from launcher.messages.own_clients import new_name
from launcher.processes import ORDERLY_S, Child, stop_all
from launcher.setup.configure import configure
from launcher.setup.keywords import answering_others
from launcher.setup.loading_bar import LoadingBar
from launcher.setup.nearest import nearest_to_given

if TYPE_CHECKING:
    from launcher.client.client import Client


AnyPath = str | os.PathLike[str]


@answering_others
def launch(
    model: AnyPath | None = None,
    *,
    transformer: AnyPath | None = None,
    text_encoder: AnyPath | None = None,
    vae: AnyPath | None = None,
    tokenizer: AnyPath | None = None,
    tp: int = 1,
    sp: int = 1,
    cfg_parallel: bool = False,
    parallel: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    variant: str | None = None,
    share_gpu: bool = False,
    quantization: str = "auto",
    attention: str = "auto",
    cuda_graphs: bool = True,
    image_input: bool = True,
    loras: AnyPath | Sequence[AnyPath] = (),
    lora_lenient: bool = False,
    merge_lora: bool = False,
    lora_dir: AnyPath | None = None,
    offload: str | Sequence[str] = (),
    prefetch: int | None = None,
    memory_budget: int | str | None = None,
    vae_memory: int | str | None = None,
    lora_memory: int | str | None = None,
    limits: Mapping[str, float] | None = None,
    start_timeout_s: float = 600.0,
    step_timeout_s: float = 300.0,
    warm_up: bool = True,
    progress: bool | None = None,
) -> Client:
    """Start an engine in processes of its own and return a `Client` of it, once it is ready.

    Closing the client stops them all; so do leaving its `with` block, forgetting it, and the end of the program.

    model is a checkpoint folder in the diffusers layout, a transformer's file, a Hugging Face repository, which is
    downloaded unless it is in the cache, or a demo: "demo-turbo", for which "demo" and None stand too, or "demo-raw".
    transformer, text_encoder, vae and tokenizer are files or folders that replace parts of it; where all four are
    given, no model need be. limits changes fields of `Limits`. A rank that is not ready after start_timeout_s seconds,
    or that takes longer than step_timeout_s over a step, or than 60 s and 20 times its estimate, counts as lost.
    warm_up: prepare a GPU first, and run steps while no request waits, to learn previews and how long work takes.
    progress: whether to show a bar until then. None: in a notebook, and where stderr is a terminal.

    image_input: whether requests may bring a picture to begin from, for which the VAE's encoder is loaded
    (docs/pictures.md).

    tp, sp and cfg_parallel: how 1, 2 or 4 GPUs share the work; parallel="auto" chooses.

    offload, prefetch, memory_budget, vae_memory and lora_memory are for small devices (docs/small-gpus.md), sizes being
    bytes or text such as "16GB".

    loras: files as "[NAME=]PATH[:STRENGTH]" for requests to choose by name, or with merge_lora to be part of the
    weights for all of them; "demo-outlined" is the demos' own. lora_lenient skips what fits nothing in a file, with a
    warning. lora_dir: a folder from which `Client.load_lora` may load more.

    Raises `ArgumentError`, `CheckpointError` or `LoraError` for what is wrong with these, and `LaunchError`,
    `RankError` or `ServerError` if the engine does not come up.
    """
    options = {name: _in_plain_types(name, value) for name, value in locals().items() if name != "progress"}
    auto = is_auto({**options, "tp": None if tp == 1 else tp, "sp": None if sp == 1 else sp})
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
    config = msgspec.structs.replace(config, hash_files=True)
    for problem in problems:
        warnings.warn(problem, stacklevel=3)  # where `launch(…)` stands
    if not (is_watched() if progress is None else progress):
        return launch_frontend(config)
    with LoadingBar() as bar:
        return launch_frontend(config, on_loading=bar.show_loading)


def _in_plain_types(name: str, value: object) -> object:
    """Return paths as text, and what may be one or several as several."""
    if name in ("loras", "offload"):
        several = (value,) if isinstance(value, str | os.PathLike) else value
        if name == "loras" and not isinstance(several, Iterable):
            raise ArgumentError.of("loras", "a list of [NAME=]PATH[:STRENGTH]", value)
        return tuple(map(_as_text, several)) if isinstance(several, Iterable) else several
    return _as_text(value)


def _as_text(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def launch_frontend(
    config: FrontendConfig, *, on_loading: Callable[[int, int, str], None] = lambda done, total, what: None
) -> Client:
    """Do what `launch` does, for a checked configuration.

    on_loading: called, from when the front-end's process runs until its ranks are ready, every second at least, in the
    thread that calls this: the bytes of the weights that all ranks together have read, how many they are to read, which
    is 0 until it is known, and what they do: `starting`, `loading` or `warming up`.
    """
    config, folder = with_run_folder(msgspec.structs.replace(config, client_name=new_name()))
    reports: SimpleQueue[Starting | Started | Ended | None] = SimpleQueue()  # of the front-end, None when it has ended
    engine = _Engine()  # closes it
    with ExitStack() as if_it_fails:
        if_it_fails.callback(engine.close)
        engine.callback(folder.remove)
        # A client that is never closed is closed here: later, threads no longer run.
        atexit.register(engine.close)
        engine.callback(atexit.unregister, engine.close)
        try:
            child = Child("_frontend", config, on_report=lambda data: reports.put(decode_frontend_report(data)))
        except OSError as error:
            raise LaunchError(f"the front-end cannot be started: {error.strerror or error}") from None
        child.on_exit(lambda: reports.put(None))
        engine.callback(stop_all, [child], patience_s=ORDERLY_S)
        with _explaining(child):
            on_loading(0, 0, "starting")
            from launcher.setup.engine_client import EngineClient  # while the ranks import torch

            address = _wait_until_started(child, reports, config.start_timeout_s + ORDERLY_S, on_loading)
            client = EngineClient(address, config, engine, lambda: _explaining(child))
            thread = client.thread  # a child that referred to the client would keep it from being forgotten
            child.on_exit(lambda: thread.server_ended(_error_of(child, reports.get())))
            client.connect()
        if_it_fails.pop_all()
        return client


class _Engine(ExitStack):
    """What it takes to stop an engine: nothing, in a process that was forked from the one that started it."""

    def __init__(self) -> None:
        super().__init__()
        self._process = os.getpid()

    def close(self) -> None:
        """Stop it."""
        if os.getpid() == self._process:
            super().close()


@contextmanager
def _explaining(child: Child) -> Iterator[None]:
    """Add the engine's last output to errors that it may explain."""
    try:
        yield
    except (LaunchError, RankError, ServerError) as error:
        if child.tail and not hasattr(error, "__notes__"):
            error.add_note("The engine's last output:\n" + "\n".join(child.tail))
        raise


def _wait_until_started(
    child: Child,
    reports: SimpleQueue[Starting | Started | Ended | None],
    timeout_s: float,
    on_loading: Callable[[int, int, str], None],
) -> str:
    """Wait for the address for clients. Raises what the front-end ended with."""

    def has_report(seconds: float) -> bool:
        with suppress(Empty):
            report = reports.get(timeout=seconds)
            if isinstance(report, Starting):
                on_loading(report.stage.done, report.stage.total, report.stage.name)
            else:
                heard.append(report)
        return bool(heard)

    heard: list[Started | Ended | None] = []
    if not AwakeClock().wait(has_report, timeout_s):
        raise LaunchError(f"the front-end was not ready within {timeout_s:g} s")
    (report,) = heard
    if isinstance(report, Started):
        return report.address
    child.wait(ORDERLY_S)
    raise _error_of(child, report)


def _error_of(child: Child, report: Starting | Started | Ended | None) -> Krea2Error:
    """Make the error that a front-end has ended with."""
    if isinstance(report, Ended):
        return error_from_code(report.code, report.message, report.parameter)
    return ServerError(f"the front-end {child.describe_exit()}")
