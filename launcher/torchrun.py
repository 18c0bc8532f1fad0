"""Under `torchrun -m launcher generate|serve …`: its processes are the ranks.

Local rank 0 starts the command itself as a child, whose front-end finds the ranks in a folder instead of starting
them; the folder's name travels through torchrun's TCPStore. When the child ends, all ranks end.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from typing import NoReturn

from launcher import worker
from launcher.internal import RankConfig, lifeline_path
from launcher.process import child_environment, make_run_folder, python_command, remove_run_folder
from launcher.spawn import ORDERLY_S, RANK_ENVIRONMENT, SIGNALS

_RUN_FOLDER, _WORLD_SIZE = "KREA2_RANKS_FOLDER", "KREA2_RANKS"  # what the child finds in its environment
_MEET_S = 60.0
_AGENT_S = 0.5  # between looks whether torchrun is there
_LAST_WORDS_S = 1.0  # for the front-end to notice that a rank died, before a signal that may be the consequence


def is_rank() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def external_ranks() -> tuple[str, int] | None:
    """In the child of rank 0: the run folder where the ranks connect, and how many there are."""
    if _RUN_FOLDER not in os.environ:
        return None
    return os.environ[_RUN_FOLDER], int(os.environ[_WORLD_SIZE])


def run_rank() -> NoReturn:
    """The whole life of a rank that torchrun started."""
    agent = os.getppid()
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if int(os.environ["LOCAL_WORLD_SIZE"]) != world_size:
        sys.exit("error: all ranks must run on one machine" if rank == 0 else 1)
    run_folder = str(make_run_folder()) if rank == 0 else None
    child = _start_command(run_folder, world_size) if run_folder is not None else None
    # Python's own handlers would wait for a collective to end; a thread does not. All threads that start from now on
    # leave signals to that one; the child has started already, and gets its own.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    if child is not None:
        threading.Thread(target=_end_with, args=(child, run_folder), daemon=True).start()
    connected = threading.Event()
    threading.Thread(target=_obey_signals, args=(child, connected), daemon=True).start()
    threading.Thread(target=_end_without, args=(agent,), daemon=True).start()

    for name, value in RANK_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from torch.distributed.rendezvous import rendezvous

    # torch's own meeting for env://, with the agent's store or rank 0's, whichever torchrun has set up
    store, _, _ = next(rendezvous("env://", rank, world_size, timeout=timedelta(seconds=_MEET_S)))
    key = f"krea2/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if run_folder is None:
        run_folder = store.get(key).decode()
    else:
        store.set(key, run_folder)
    _connect_lifeline(run_folder, rank)
    connected.set()
    worker.serve(RankConfig(rank=rank, world_size=world_size, run_folder=run_folder, store_file=None))


def _start_command(run_folder: str, world_size: int) -> subprocess.Popen[bytes]:
    """The same command line without torchrun. It ends when its stdin does, and we end when it does."""
    environment = {
        name: value
        for name, value in child_environment().items()
        if not name.startswith(("TORCHELASTIC_", "MASTER_", "GROUP_", "ROLE_"))
        and name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    }
    environment |= {_RUN_FOLDER: run_folder, _WORLD_SIZE: str(world_size)}
    return subprocess.Popen(
        python_command(*sys.argv[1:]), stdin=subprocess.PIPE, env=environment, start_new_session=True
    )


def _end_with(child: subprocess.Popen[bytes], run_folder: str) -> None:
    code = child.wait()
    remove_run_folder(run_folder)
    os._exit(code if code >= 0 else 128 - code)


def _end_without(agent: int) -> None:
    """torchrun was killed without a chance to stop its processes: stop as if it had asked."""
    while os.getppid() == agent:
        time.sleep(_AGENT_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _obey_signals(child: subprocess.Popen[bytes] | None, connected: threading.Event) -> None:
    number = signal.sigwait(SIGNALS)
    if child is None:  # rank 0 ends the command, and its front-end, once it has found us, ends us
        time.sleep(_LAST_WORDS_S + ORDERLY_S if connected.is_set() else _LAST_WORDS_S)
        os._exit(128 + number)
    for patience, next_number in ((_LAST_WORDS_S, number), (ORDERLY_S, signal.SIGKILL)):
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            child.send_signal(next_number)


def _connect_lifeline(run_folder: str, rank: int) -> None:
    """Hold a connection to the front-end, so that each side learns at once when the other is gone."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    deadline = time.monotonic() + _MEET_S
    while True:
        try:
            connection.connect(lifeline_path(run_folder))
            break
        except OSError:  # it is not listening yet
            if time.monotonic() > deadline:
                sys.exit(f"error: rank {rank} found no front-end within {_MEET_S:g} s")
            time.sleep(0.05)
    connection.sendall(bytes([rank]))

    def end_with_it() -> None:
        connection.recv(1)
        if rank != 0:  # rank 0 ends with the command, and with its exit code
            os._exit(0)

    threading.Thread(target=end_with_it, daemon=True).start()
