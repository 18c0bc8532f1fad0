"""Starts an engine on this machine: `launch` starts a front-end for Python, and a front-end starts its ranks."""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import socket
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError, Krea2Error, LaunchError, RankError, ServerError, error_from_code
from launcher.auto_mode.choice import choose_mode, is_auto
from launcher.auto_mode.prediction import Workload, block_form
from launcher.logs import log_event
from launcher.messages.configs import Ended, FrontendConfig, RankConfig, Started, decode_frontend_report
from launcher.messages.encoding import describe
from launcher.messages.limits import Limits, is_number, parse_bytes
from launcher.processes import (
    STOP_S,
    TERMINATE_S,
    Child,
    Reporter,
    exit_after,
    make_run_folder,
    read_config,
    remove_run_folder,
    stop_all,
    watch_parent,
)
from launcher.setup.hub import find_model

if TYPE_CHECKING:
    from launcher.client.client import Client
    from launcher.http.server_process import HttpServer

ORDERLY_S = STOP_S + 2 * TERMINATE_S + 2.0  # for a front-end to stop its ranks and send its last replies
# What stops us; a program started with nohup goes on when its terminal is closed.
SIGNALS = tuple(
    number
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
)
MAX_TIMEOUT_S = 7 * 86_400
# What every rank gets that the environment says nothing else of.
RANK_ENVIRONMENT = {
    # Threads that spin while they wait take the cores from those they wait for as soon as anything else runs on the
    # machine: on two cores with one more busy process the demo picture took 2.5 to 6.7 s with spinning, 1.8 to 2.3
    # without.
    "OMP_WAIT_POLICY": "PASSIVE",
    # torch asks for huge pages, as most Linux systems want to be asked: copying 200 MB into new memory took 65 ms on
    # two cores, and 180 without.
    "THP_MEM_ALLOC_ENABLE": "1",
    # After a CUDA error torch's thread that watches NCCL would end the process, before the one that was computing has
    # said what went wrong.
    "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",
    # or NCCL does not say why it fails
    "NCCL_DEBUG": "WARN",
}


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
    if not isinstance(warm_up, bool):
        raise ArgumentError.of("warm_up", "True or False", warm_up)
    choose = is_auto(
        parallel,
        tp=tp if tp != 1 else None,
        sp=sp if sp != 1 else None,
        cfg_parallel=cfg_parallel,
    )
    engine = EngineConfig(
        model=model,
        transformer=transformer,
        text_encoder=text_encoder,
        vae=vae,
        tokenizer=tokenizer,
        tp=tp,
        sp=sp,
        cfg_parallel=cfg_parallel,
        device=device,
        dtype=dtype,
        variant=variant,
        share_gpu=share_gpu,
        quantization=quantization,
        attention=attention,
        cuda_graphs=cuda_graphs,
        lora_lenient=lora_lenient,
        offload=(offload,) if isinstance(offload, str) else tuple(offload),
        prefetch=prefetch,
        memory_budget=parse_bytes("memory_budget", memory_budget),
        vae_memory=parse_bytes("vae_memory", vae_memory),
        lora_memory=parse_bytes("lora_memory", lora_memory),
    )
    config, checkpoint = configure(engine, limits or {}, start_timeout_s=start_timeout_s, step_timeout_s=step_timeout_s)
    if choose:
        config, lines = choose_parallel(config, Workload.default(checkpoint))
        log_event("parallel auto", mode=config.engine.degrees.name, because="\n".join(lines))
    config, problems = add_loras(config, checkpoint, loras, lora_dir=lora_dir, merge=merge_lora)
    for problem in problems:
        warnings.warn(problem, stacklevel=3)  # where `with launch(…)` stands
    config = msgspec.structs.replace(config, warm_up=warm_up)
    with launch_frontend(config) as client:
        yield client


def configure(
    engine: EngineConfig, limits: Mapping[str, float], *, start_timeout_s: float, step_timeout_s: float
) -> tuple[FrontendConfig, ModelConfig]:
    """Check everything that can be checked without starting anything, after downloading a model that is named only by
    its Hugging Face repository. Raises `ArgumentError` or `CheckpointError`."""
    engine = replace(engine, model=find_model(engine.model))
    checkpoint = CheckpointFiles.open(engine)
    form = block_form(checkpoint, engine)
    checkpoint.close()
    model = checkpoint.config
    model.check_parallel(engine.tp, engine.sp)
    for name, seconds in (("start_timeout_s", start_timeout_s), ("step_timeout_s", step_timeout_s)):
        if not is_number(seconds) or not 0 < seconds <= MAX_TIMEOUT_S:
            raise ArgumentError.of(name, f"above 0 and at most {MAX_TIMEOUT_S}", seconds)
    config = FrontendConfig(
        engine=engine,
        limits=Limits.of(limits),
        start_timeout_s=start_timeout_s,
        step_timeout_s=step_timeout_s,
        block_form=form,
    )
    return config, model


def choose_parallel(
    config: FrontendConfig, workload: Workload, *, ranks: int | None = None
) -> tuple[FrontendConfig, tuple[str, ...]]:
    """In the fastest mode for the workload, with the reasons; ranks: if so many have been started. Raises as
    `parallel_choice.choose_mode`."""
    choice = choose_mode(config.engine, workload, ranks=ranks)
    return msgspec.structs.replace(config, engine=choice.engine), choice.lines


def add_loras(
    config: FrontendConfig, model: ModelConfig, loras: Sequence[str], *, lora_dir: str | None, merge: bool
) -> tuple[FrontendConfig, tuple[str, ...]]:
    """See `lora_files.with_loras`, which is not imported for nothing."""
    if not loras and not merge and lora_dir is None:
        return config, ()
    from launcher.requests.lora_files import with_loras

    return with_loras(config, model, loras, lora_dir=lora_dir, merge=merge)


@contextmanager
def launch_frontend(config: FrontendConfig, *, while_starting: Callable[[], None] = lambda: None) -> Iterator[Client]:
    """`launch`, for a configuration that has been checked."""
    config = _with_run_folder(config)
    with ExitStack() as cleanup:
        cleanup.callback(remove_run_folder, config.run_folder)
        # A block that is never left (entered by hand in a REPL) ends here: later, threads no longer run.
        atexit.register(cleanup.close)
        cleanup.callback(atexit.unregister, cleanup.close)
        server = _FrontendProcess(config)
        cleanup.callback(server.stop)
        try:
            while_starting()
            from launcher.client.client import Client  # while the ranks import torch

            client = cleanup.enter_context(Client(server.wait_until_started(), connect=False))
            server.on_end(client.server_ended)
            client.connect()
            yield client
        except (LaunchError, RankError, ServerError) as error:
            if server.output:
                error.add_note("The engine's last output:\n" + "\n".join(server.output))
            raise


class _FrontendProcess:
    """A front-end in a child process."""

    def __init__(self, config: FrontendConfig) -> None:
        self._address: str | None = None
        self._error: Krea2Error | None = None
        self._changed = threading.Event()
        self._start_timeout_s = config.start_timeout_s + ORDERLY_S
        self._child = Child("_frontend", config, on_report=self._hear)
        self._child.on_exit(self._changed.set)

    @property
    def output(self) -> Sequence[str]:
        return self._child.tail

    def wait_until_started(self) -> str:
        """The address for clients. Raises what the front-end ended with."""
        if not self._changed.wait(self._start_timeout_s):
            raise LaunchError(f"the front-end was not ready within {self._start_timeout_s:g} s")
        if self._address is None:
            self._child.wait(ORDERLY_S)
            raise self._end()
        return self._address

    def on_end(self, callback: Callable[[Krea2Error], None]) -> None:
        self._child.on_exit(lambda: callback(self._end()))

    def stop(self) -> None:
        stop_all([self._child], patience_s=ORDERLY_S)

    def _end(self) -> Krea2Error:
        return self._error or ServerError(f"the front-end {self._child.describe_exit()}")

    def _hear(self, data: bytes) -> None:
        report = decode_frontend_report(data)
        if isinstance(report, Started):
            self._address = report.address
        else:
            self._error = error_from_code(report.code, report.message, report.parameter)
        self._changed.set()


# ---- the front-end's side


def run_frontend() -> None:
    """The whole life of a front-end that `launch` started."""
    config = read_config(FrontendConfig)
    parent = Reporter()

    def end(code: str, message: str, parameter: str | None = None) -> None:
        parent.send(Ended(code=code, message=message, parameter=parameter))

    try:
        number = serve_until_stopped(
            config, on_started=lambda address: parent.send(Started(address=address)), is_child=True
        )
        if number is not None:
            end(ServerError.code, "the server was stopped")
    except Krea2Error as error:
        end(error.code, error.message, error.parameter)
    except Exception as error:
        traceback.print_exception(error)
        end(Krea2Error.code, f"front-end: {describe(error)}")


def serve_until_stopped(
    config: FrontendConfig, *, on_started: Callable[[str], None], is_child: bool, http: HttpServer | None = None
) -> signal.Signals | None:
    """Start the ranks and be their front-end until SIGINT, SIGTERM or, as a child, the parent ends it.

    `http` runs meanwhile, until the front-end has ended: what it has made by then is still answered. Returns the
    signal, if there was one. No process and no file is left when this returns or raises; raises what `frontend.serve`
    does, and `LaunchError` if `on_started` cannot write.
    """
    config = _with_run_folder(config)
    ranks: list[Child] = []
    received: signal.Signals | None = None
    unheard: LaunchError | None = None

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
            exit_after(ORDERLY_S)
            with suppress(RuntimeError):  # the loop has ended already
                loop.call_soon_threadsafe(stop_now.set)

        def announce(address: str) -> None:
            nonlocal unheard
            if http is not None:
                http.start(address)
            try:
                on_started(address)
            except OSError as error:
                unheard = LaunchError(f"the server's address cannot be written to stdout: {error.strerror}")
                stop_now.set()

        for number in SIGNALS:
            loop.add_signal_handler(number, stop_for, number)
        if is_child:
            watch_parent(parent_ended)
        await serve(
            config,
            ranks,
            start_ranks=lambda generation: start_ranks(config, ranks, generation),
            on_started=announce,
            stop=stop,
            stop_now=stop_now,
        )

    try:
        start_ranks(config, ranks)
        address = config.rpc or f"ipc://{config.run_folder}/clients"
        if http is not None and not address.endswith(":0"):  # otherwise it is known later
            http.start(address)
        from launcher.frontend.frontend import serve  # while the ranks import torch

        asyncio.run(run())
    finally:
        for number in SIGNALS:  # stopping is what they ask for
            signal.signal(number, signal.SIG_IGN)
        stop_all([*ranks, *(http.ask_to_stop() if http is not None else [])])
        remove_run_folder(config.run_folder)
    if unheard is not None:
        raise unheard
    return received


def _with_run_folder(config: FrontendConfig) -> FrontendConfig:
    return config if config.run_folder else msgspec.structs.replace(config, run_folder=str(make_run_folder()))


def start_ranks(config: FrontendConfig, ranks: list[Child], generation: int = 0) -> None:
    """Start a process for every rank, and append it to `ranks` at once. Does nothing if somebody else starts them."""
    if config.external_ranks:
        return
    ranks_wanted = config.engine.ranks
    defaults = {
        "OMP_NUM_THREADS": str(max(1, _cores() // ranks_wanted)),
        **RANK_ENVIRONMENT,
        # gloo would look up the host's own name otherwise, which need not lead anywhere
        "GLOO_SOCKET_IFNAME": _loopback_interface(),
    }
    environment = {name: value for name, value in defaults.items() if name not in os.environ}
    for rank in range(ranks_wanted):
        rank_config = RankConfig(
            rank=rank,
            local_rank=rank,
            local_ranks=ranks_wanted,
            run_folder=config.run_folder,
            generation=generation,
            store_file=f"{config.run_folder}/store-{generation}",
        )
        try:
            ranks.append(Child("_rank", rank_config, environment=environment, echo=f"rank {rank}"))
        except OSError as error:
            raise LaunchError(f"rank {rank} cannot be started: {error}") from None


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _loopback_interface() -> str:
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name in ("lo", "lo0")), names[0])
