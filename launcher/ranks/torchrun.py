"""Under `torchrun -m launcher generate|serve …`: its processes are the ranks.

Rank 0 starts the command itself as a child, whose front-end finds the ranks in a folder instead of starting them; the
folder's name travels through torchrun's TCPStore, and so does the door for ranks on other machines. When the child
ends, all ranks end.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import msgspec

from launcher import processes
from launcher.logs import take_stderr
from launcher.messages.configs import Door, RankConfig
from launcher.messages.rank_messages import door_path, lifeline_path
from launcher.ranks import worker
from launcher.ranks.start import RANK_ENVIRONMENT
from launcher.run_folder import RunFolder, remove_run_folder

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

# What torchrun adds to an environment, beside a few settings for its processes' logs.
_OF_TORCHRUN = re.compile(r"(TORCHELASTIC|MASTER|GROUP|ROLE)_|(LOCAL_)?(RANK|WORLD_SIZE)$")
_RANKS = "KREA2_EXTERNAL_RANKS"  # what the child finds in its environment
_MEET_S = 180.0  # a front-end may first ask for GPUs, which takes up to 120 s
_AGENT_S = 0.5  # between looks whether torchrun is there
_LAST_WORDS_S = 1.0  # for the front-end to notice that a rank died, before a signal that may be the consequence
_EARLY_END_S = 20.0  # for ranks on other machines to come and hear that the command has ended before it had a door


class ExternalRanks(NamedTuple):
    """The ranks that torchrun has started: how many in all and on this machine, on how many machines, and where they
    find the front-end: in a run folder here, at `host` from other machines."""

    total: int
    local: int
    machines: int
    run_folder: str
    host: str

    @property
    def remote(self) -> int:
        """How many ranks other machines have."""
        return self.total - self.local


def is_rank() -> bool:
    """Return whether torchrun has started this process as a rank."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def external_ranks() -> ExternalRanks | None:
    """Return which ranks come to this process, if it is the command that rank 0 has started; None otherwise."""
    if _RANKS not in os.environ:
        return None
    return msgspec.json.decode(os.environ[_RANKS], type=ExternalRanks)


def tp_warning(tp: int, ranks: ExternalRanks) -> str | None:
    """Return a warning if the ranks of a tp group, which are neighbours, are on several machines."""
    alike = ranks.local * ranks.machines == ranks.total
    if tp == 1 or ranks.local == ranks.total or (alike and ranks.local % tp == 0):
        return None
    return (
        f"tp {tp} with {ranks.total} ranks on {ranks.machines} machines sends activations between them in every block: "
        "use --sp or --cfg-parallel across machines, and tp within one"
    )


def run_rank() -> NoReturn:
    """Live as a rank that torchrun started, until the command or torchrun ends."""
    agent = os.getppid()
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
    rank, local_rank, total, local, machines = (int(os.environ[name]) for name in names)
    folder = RunFolder.make() if rank == 0 else None  # held until we end
    run_folder = "" if folder is None else folder.path
    ranks = ExternalRanks(total, local, machines, run_folder, os.environ["MASTER_ADDR"])
    met: Future[Store] = Future()
    child = _start_command(ranks) if rank == 0 else None
    processes.forget_secrets(os.environ)  # libraries, and what they start; /proc shows what torchrun gave us
    os.dup2(2, 1)  # what libraries print, as NCCL its warnings, is not the command's output
    # Python's own handlers would wait for a collective to end; a thread does not. All threads that start from now on
    # leave signals to that one; the child has started already, and gets its own.
    signal.pthread_sigmask(signal.SIG_BLOCK, processes.SIGNALS)
    take_stderr()  # which all ranks and the command share
    if child is not None:
        threading.Thread(target=_end_with, args=(child, ranks, met), daemon=True).start()
    connected = threading.Event()
    threading.Thread(target=_obey_signals, args=(child, connected), daemon=True).start()
    threading.Thread(target=_end_without, args=(agent,), daemon=True).start()

    for name, value in RANK_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    run_folder, door = _meet(rank, ranks, met)
    if door is None:
        _connect_lifeline(run_folder, rank)
        if rank == 0 and ranks.remote:
            met.result().compare_set("door", "", Path(door_path(run_folder)).read_text())
    else:
        from launcher.ranks.remote_ranks import hold_lifeline

        hold_lifeline(door, rank, _MEET_S)
    connected.set()
    config = RankConfig(
        rank=rank, local_rank=local_rank, local_ranks=ranks.local, run_folder=run_folder, door=door, store_file=None
    )
    worker.serve(config)


def _start_command(ranks: ExternalRanks) -> subprocess.Popen[bytes]:
    """Start the same command line without torchrun. It ends when its stdin does, and we end when it does."""
    ours = processes.child_environment(secrets=True)
    environment = {name: value for name, value in ours.items() if not _OF_TORCHRUN.match(name)}
    environment[_RANKS] = msgspec.json.encode(ranks).decode()
    command = processes.python_command(*sys.argv[1:])
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)


def _end_with(child: subprocess.Popen[bytes], ranks: ExternalRanks, met: Future[Store]) -> None:
    """End this process as the command has ended, with its exit code. Ranks on other machines that have not been told
    the door are told the code first."""
    code = child.wait()
    code = code if code >= 0 else 128 - code
    remove_run_folder(ranks.run_folder)
    if ranks.remote:
        with suppress(Exception):  # torchrun may be gone, and its store with it
            store = met.result(_MEET_S)
            if store.compare_set("door", "", str(code)).decode() == str(code):
                deadline = time.monotonic() + _EARLY_END_S
                while store.add("heard", 0) < ranks.remote and time.monotonic() < deadline:
                    time.sleep(0.05)
    os._exit(code)


def _meet(rank: int, ranks: ExternalRanks, met: Future[Store]) -> tuple[str, Door | None]:
    """Meet the other ranks in torchrun's store, and learn where the front-end is: in a folder, or behind a door.

    The store's "folder" is for ranks of rank 0's machine; "door" is for the others: the door, or the command's exit
    code if it has ended without one; "heard" counts who has read that. Ends the process if the command has ended, or
    nothing is heard of rank 0.
    """
    from torch.distributed import DistError
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        # torch's own meeting for env://, with the agent's store or rank 0's, whichever torchrun has set up
        whole, _, _ = next(rendezvous("env://", rank, ranks.total, timeout=timedelta(seconds=_MEET_S)))
        store = PrefixStore(f"krea2/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", whole)
        met.set_result(store)
        if rank == 0:
            store.set("folder", ranks.run_folder)
            return ranks.run_folder, None
        if os.environ["GROUP_RANK"] == "0":
            return store.get("folder").decode(), None
        told = store.get("door").decode()
        store.add("heard", 1)
    except DistError:
        sys.exit(f"error: rank {rank} heard nothing of rank 0 on {os.environ['MASTER_ADDR']}")
    if told.isdigit():
        os._exit(int(told))
    return "", msgspec.json.decode(told, type=Door)


# ---- life and death


def _end_without(agent: int) -> None:
    """Stop, as if torchrun had asked, once it was killed without a chance to do so."""
    while os.getppid() == agent:
        time.sleep(_AGENT_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _obey_signals(child: subprocess.Popen[bytes] | None, connected: threading.Event) -> None:
    """Hand a signal on to the command, or end without one. connected: set once this rank has its lifeline."""
    number = signal.sigwait(processes.SIGNALS)
    if child is None:  # rank 0 ends the command, and its front-end, once it has found us, ends us
        time.sleep(_LAST_WORDS_S + processes.ORDERLY_S if connected.is_set() else _LAST_WORDS_S)
        os._exit(128 + number)
    for patience, next_number in ((_LAST_WORDS_S, number), (processes.ORDERLY_S, signal.SIGKILL)):
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
