"""Starts an engine from Python, in processes of its own: a front-end, which starts its ranks."""

from __future__ import annotations

import atexit
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from engine.errors import Krea2Error, LaunchError, RankError, ServerError, error_from_code
from launcher.auto_mode.choice import is_auto
from launcher.auto_mode.prediction import Workload
from launcher.frontend.process import with_run_folder
from launcher.logs import log_event
from launcher.messages.configs import FrontendConfig, Started, decode_frontend_report
from launcher.processes import ORDERLY_S, Child, remove_run_folder, stop_all
from launcher.setup.configure import configure

if TYPE_CHECKING:
    from launcher.client.client import Client


@contextmanager
def launch(
    model: str | None = None,
    *,
    transformer: str | None = None,
    text_encoder: str | None = None,
    vae: str | None = None,
    tokenizer: str | None = None,
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
    loras: Sequence[str] = (),
    lora_lenient: bool = False,
    merge_lora: bool = False,
    lora_dir: str | None = None,
    offload: Sequence[str] = (),
    prefetch: int | None = None,
    memory_budget: int | str | None = None,
    vae_memory: int | str | None = None,
    lora_memory: int | str | None = None,
    limits: Mapping[str, float] | None = None,
    start_timeout_s: float = 600.0,
    step_timeout_s: float = 300.0,
    warm_up: bool = True,
) -> Iterator[Client]:
    """Start an engine in processes of its own and give a `Client` of it; leaving the block stops them all.

    model is a checkpoint folder in the diffusers layout, a transformer's file, a Hugging Face repository, which is
    downloaded unless it is in the cache, or a demo: "demo-turbo", for which "demo" and None stand too, or "demo-raw".
    transformer, text_encoder, vae and tokenizer are files or folders that replace parts of it; where all four are
    given, no model need be. limits changes fields of `Limits`. A rank that is not ready after start_timeout_s seconds,
    or that takes longer than step_timeout_s over a step, counts as lost. warm_up: work that nobody asked for, while
    nobody waits: previews and estimated times come from it.

    tp, sp and cfg_parallel: how 1, 2 or 4 GPUs share the work; parallel="auto" chooses.

    offload, prefetch, memory_budget, vae_memory and lora_memory are for small devices (docs/small-gpus.md), sizes being
    bytes or text such as "16GB".

    loras: files as "[NAME=]PATH[:STRENGTH]" for requests to choose by name, or with merge_lora to be part of the
    weights for all of them; "demo-outlined" is the demos' own. lora_lenient skips what fits nothing in a file, with a
    warning. lora_dir: a folder from which `Client.load_lora` may load more.

    Raises `ArgumentError`, `CheckpointError` or `LoraError` for what is wrong with these, and `LaunchError` or
    `RankError` if the engine does not come up.
    """
    options = dict(locals())  # all that is in the signature, by name
    auto = is_auto({**options, "tp": None if tp == 1 else tp, "sp": None if sp == 1 else sp})
    config, _, problems = configure(
        {**options, "offload": (offload,) if isinstance(offload, str) else tuple(offload)},
        auto=auto,
        workload=lambda model, _: Workload.default(model),
        tell=lambda engine, lines: log_event("parallel auto", mode=engine.degrees.name, because="\n".join(lines)),
    )
    for problem in problems:
        warnings.warn(problem, stacklevel=3)  # where `with launch(…)` stands
    with launch_frontend(config) as client:
        yield client


@contextmanager
def launch_frontend(config: FrontendConfig, *, while_starting: Callable[[], None] = lambda: None) -> Iterator[Client]:
    """Do what `launch` does, for a configuration that has been checked."""
    config = with_run_folder(config)
    with ExitStack() as cleanup:
        cleanup.callback(remove_run_folder, config.run_folder)
        # A block that is never left (entered by hand in a REPL) ends here: later, threads no longer run.
        atexit.register(cleanup.close)
        cleanup.callback(atexit.unregister, cleanup.close)
        server = _FrontendProcess(config)
        cleanup.callback(stop_all, [server.child], patience_s=ORDERLY_S)
        try:
            while_starting()
            from launcher.client.client import Client  # while the ranks import torch

            client = cleanup.enter_context(Client(server.wait_until_started(), connect=False))
            server.child.on_exit(lambda: client.server_ended(server.end()))
            client.connect()
            yield client
        except (LaunchError, RankError, ServerError) as error:
            if server.child.tail:
                error.add_note("The engine's last output:\n" + "\n".join(server.child.tail))
            raise


class _FrontendProcess:
    """A front-end in a child process, and what it has reported."""

    def __init__(self, config: FrontendConfig) -> None:
        self._address: str | None = None
        self._error: Krea2Error | None = None
        self._changed = threading.Event()
        self._start_timeout_s = config.start_timeout_s + ORDERLY_S
        self.child = Child("_frontend", config, on_report=self._hear)
        self.child.on_exit(self._changed.set)

    def wait_until_started(self) -> str:
        """Wait for the address for clients. Raises what the front-end ended with."""
        if not self._changed.wait(self._start_timeout_s):
            raise LaunchError(f"the front-end was not ready within {self._start_timeout_s:g} s")
        if self._address is None:
            self.child.wait(ORDERLY_S)
            raise self.end()
        return self._address

    def end(self) -> Krea2Error:
        """Tell the error that it has ended with."""
        return self._error or ServerError(f"the front-end {self.child.describe_exit()}")

    def _hear(self, data: bytes) -> None:
        report = decode_frontend_report(data)
        if isinstance(report, Started):
            self._address = report.address
        else:
            self._error = error_from_code(report.code, report.message, report.parameter)
        self._changed.set()
