"""Starts the processes of ranks on this machine, with the environment that they need."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from engine.errors import LaunchError
from launcher.messages.configs import FrontendConfig, RankConfig
from launcher.processes import Child

# Variables of every rank's environment, unless the user has set them.
RANK_ENVIRONMENT = {
    # Threads that spin while they wait take cores from the threads they wait for, as soon as anything else runs on the
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


def start_ranks(
    config: FrontendConfig, ranks: list[Child], generation: int = 0, variables: Mapping[str, str] | None = None
) -> None:
    """Start a process for every rank, and append it to `ranks` at once. Do nothing if torchrun starts them.

    generation: how many groups of ranks there were before. variables: of their environment. Raises `LaunchError` if a
    process cannot be started.
    """
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
    environment |= variables or {}
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
    try:
        names = [name for _, name in socket.if_nameindex()]
    except OSError as error:
        raise LaunchError(f"ranks cannot be started: {error}") from None
    return next((name for name in names if name in ("lo", "lo0")), names[0])
