"""A rank's process: loads its shard, executes the steps it is told, and sends back what becomes of them.

Three threads talk to the front-end, each over a socket of its own: this one executes steps and never waits for the
device, so the next step is queued there while one still runs; a second waits for steps to finish; the rank's decoding
thread sends images.
"""

from __future__ import annotations

import faulthandler
import math
import os
import queue
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec

from engine.errors import Krea2Error, LaunchError
from launcher.awake import AwakeClock
from launcher.logs import flush_stderr, keep_lines_whole, log_exception
from launcher.messages import rank_messages as messages
from launcher.messages.configs import RankConfig
from launcher.messages.encoding import describe, encode
from launcher.processes import read_config, watch_parent
from launcher.ranks.loading import LoadingReports
from launcher.run_folder import remove_run_folder

if TYPE_CHECKING:
    import zmq

    from engine.rank.image_decoder import DecodedImage
    from engine.rank.rank import Rank
    from engine.rank.step_handle import StepHandle

_ORDERS_S = 60.0  # for the front-end to say what to load
_HEARD_S = 10.0  # for the front-end to stop us once it has our failure


def run_spawned() -> NoReturn:
    """Run a rank that the front-end started, until it or the front-end ends."""
    keep_lines_whole()
    config = read_config(RankConfig)

    def end(parent_died: bool) -> None:
        if parent_died:
            remove_run_folder(config.run_folder)
        os._exit(0)  # at once, also out of a collective that waits for a rank that has gone already

    watch_parent(end)
    serve(config)


def serve(config: RankConfig) -> NoReturn:
    """Work until the process is ended from outside, or this rank fails: then say so and end."""
    faulthandler.enable(2, all_threads=False)  # a crash says where on stderr; not where other threads were
    wire = _Wire(config)
    try:
        _work(_load(config, wire), config, wire)
    except Exception as error:
        wire.fail(error)
    threading.Event().wait(_HEARD_S)
    os._exit(1)


def _load(config: RankConfig, wire: _Wire) -> Rank:
    """Do what `Load` says, and answer it with `Ready`."""
    from engine.device.devices import device_name, gpu_uuids, pick_device
    from engine.parallel.distributed import connect_mesh
    from engine.rank.rank import Rank
    from engine.rank.warm_up import warm_up

    wire.send(messages.Hello(rank=config.rank))
    if not AwakeClock().wait(wire.has_command, _ORDERS_S):
        raise LaunchError(f"rank {config.rank} got no orders from the front-end within {_ORDERS_S:g} s")
    load, _ = wire.receive()
    assert isinstance(load, messages.Load)
    device = pick_device(load.engine, config.local_rank, config.local_ranks)
    mesh = connect_mesh(
        config.rank,
        load.engine.degrees,
        device,
        store_file=Path(config.store_file) if config.store_file is not None else None,
        timeout_s=load.timeout_s,
        share_gpu=load.engine.share_gpu,
    )

    def send_image(image: DecodedImage) -> None:
        header = messages.Decoded(
            rank=config.rank,
            job_id=image.job_id,
            width=image.width,
            height=image.height,
            decode_s=image.decode_s,
            finite=image.finite,
        )
        wire.send(header, image.rgb)

    def send_failure(job_id: int, error: Krea2Error) -> None:
        wire.send(messages.JobFailed(rank=config.rank, job_id=job_id, code=error.code, message=error.message))

    rank = Rank(
        load.engine,
        mesh,
        device,
        on_image=send_image,
        on_failed=send_failure,
        on_read=LoadingReports(config.rank, wire.send).tell,
        local_ranks=config.local_ranks,
    )
    if load.warm_up:
        warm_up(rank, load.warm_up_sizes)
    attention = rank.model.attention_choice.describe()
    if rank.plans is not None:
        attention["plans"] = rank.plans.schedule.describe()
    gpus = gpu_uuids(device)
    wire.send(
        messages.Ready(
            rank=config.rank,
            device=str(device),
            device_name=device_name(device),
            gpu=gpus[device.index] if gpus else "",
            visible_gpus=gpus,
            link=rank.link,
            memory=rank.memory(),
            decoding_bytes_per_element=rank.model.decode_memory.bytes_per_element,
            attention=attention,
            memory_plan=rank.model.describe_plan(),
        )
    )
    return rank


def _work(rank: Rank, config: RankConfig, wire: _Wire) -> NoReturn:
    """Execute steps as they come. A second thread waits for each to be done on the device, and answers it."""
    started: queue.SimpleQueue[tuple[int, StepHandle]] = queue.SimpleQueue()

    def reply_to_steps() -> None:
        try:
            while True:
                number, handle = started.get()
                wire.send(messages.StepDone(rank=config.rank, number=number, times=handle.wait()))
                for preview in handle.previews:
                    height, width, _ = preview.pixels.shape
                    header = messages.Previewed(
                        rank=config.rank, job_id=preview.job_id, step=preview.step, width=width, height=height
                    )
                    wire.send(header, preview.pixels.numpy().tobytes())
        except Exception as error:
            wire.fail(error)

    threading.Thread(target=reply_to_steps, name="replies", daemon=True).start()
    while True:
        while (wait_s := rank.idle_wait_s()) is not None and not wire.has_command(wait_s):
            if (plan := rank.use_idle_time()) is not None:
                wire.send(messages.PlanBuilt(rank=config.rank, plan=plan))
        command, frames = wire.receive()
        assert isinstance(command, messages.Execute)
        pixels = messages.read_pixels(command.step, frames)
        started.put((command.step.number, rank.execute(command.step, pixels)))


class _Wire:
    """Connects this rank to the front-end. Commands come to the thread that made it; any thread may send."""

    def __init__(self, config: RankConfig) -> None:
        import zmq

        self._config = config
        self._context = zmq.Context()
        self._sockets = threading.local()
        self._commands = self._sockets.own = self._connect(messages.route(config.rank))

    def _connect(self, routing_id: bytes | None = None) -> zmq.Socket[bytes]:
        import zmq

        socket = self._context.socket(zmq.DEALER)
        if routing_id is not None:
            socket.routing_id = routing_id
        if self._config.door is not None:
            from launcher.ranks.remote_ranks import connect

            connect(socket, self._config.door)
        else:
            socket.connect(messages.ranks_address(self._config.run_folder, self._config.generation))
        return socket

    def has_command(self, timeout_s: float) -> bool:
        """Wait for a command, `timeout_s` seconds at most. Returns whether `receive` will return at once."""
        return bool(self._commands.poll(math.ceil(timeout_s * 1000)))

    def receive(self) -> tuple[messages.Command, list[bytes]]:
        """Wait for the next command, and the binary frames that came with it."""
        header, *frames = self._commands.recv_multipart()
        return messages.decode_command(header), frames

    def send(self, message: msgspec.Struct, *frames: bytes) -> None:
        """Send a report with its binary frames, over a socket of the calling thread's own."""
        if not hasattr(self._sockets, "own"):
            self._sockets.own = self._connect()
        self._sockets.own.send_multipart([encode(message), *frames], copy=False)

    def fail(self, error: Exception) -> None:
        """Send why this rank cannot go on. The message begins with the rank unless it is a `Krea2Error` on the
        front-end's own machine."""
        name = f"rank {self._config.rank}"
        if isinstance(error, Krea2Error):
            code, message, parameter = error.code, error.message, error.parameter
            if self._config.door is not None:  # where the checkpoint, say, may be missing that is there on the first
                message = f"{name}: {message}"
        else:
            log_exception(error)
            flush_stderr()  # before the front-end hears of it, and ends us
            code, message, parameter = "internal_error", f"{name}: {describe(error)}", None
        self.send(messages.RankFailed(rank=self._config.rank, code=code, message=message, parameter=parameter))
