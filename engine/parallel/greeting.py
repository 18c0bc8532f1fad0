"""What ranks tell each other, and agree on: before anything is loaded who they are, from which all conclude how to talk
or why they cannot, and whether every group gives the right numbers; later with which attention they compute."""

from __future__ import annotations

import json
import math
import platform
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch

import engine
from engine.config.degrees import EXCHANGING, Degrees
from engine.errors import ArgumentError, Krea2Error, LaunchError
from engine.kernels.attention.backends import BACKENDS
from engine.kernels.attention.choice import Timing
from engine.parallel.group import Group
from engine.parallel.mesh import Mesh

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")
Begin = Callable[[str], None]

CHECK_S = 60.0  # for ranks that have all come to connect and to try every operation
_WIDTH = 4  # numbers in a row
_ADVICE = {
    "nccl": (
        "; it may be that the GPUs cannot reach each other's memory: try NCCL_P2P_DISABLE=1, then NCCL_NVLS_ENABLE=0, "
        "and in a container more shared memory (docker run --shm-size 1g); NCCL_DEBUG=INFO says more"
    ),
    "gloo": "; GLOO_SOCKET_IFNAME is the network interface by which ranks reach each other",
}


@dataclass(frozen=True)
class Card:
    """Who a rank is. device: cpu or cuda. gpu: the GPU's name and UUID. versions: of what must be the same on all."""

    rank: int
    machine: str
    device: str
    gpu: str | None
    versions: dict[str, str]

    @classmethod
    def of(cls, rank: int, device: torch.device) -> Card:
        """Make the card of this process."""
        gpu, versions = None, {"krea2-engine": engine.__version__, "torch": torch.__version__}
        if device.type == "cuda":
            gpu = f"{torch.cuda.get_device_name(device)} {torch.cuda.get_device_properties(device).uuid}"
            with suppress(Exception):  # a torch that was built without it
                versions["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
        return cls(rank, platform.node(), device.type, gpu, versions)

    @property
    def where(self) -> str:
        return f"rank {self.rank} on {self.machine}"


def exchange(store: Store, card: Card, ranks: int, timeout_s: float) -> list[Card]:
    """Hand in a rank's card and wait for all. Raises `LaunchError` if one has not come within `timeout_s` seconds, and
    if the store is a file that cannot be written."""
    names = [f"krea2/card/{rank}" for rank in range(ranks)]
    try:
        store.set(names[card.rank], json.dumps(asdict(card)))
    except RuntimeError as error:
        where = getattr(store, "path", "the place where ranks meet")
        raise LaunchError(f"{where}: cannot be written: {error}") from None
    try:
        store.wait(names, timedelta(seconds=timeout_s))
    except RuntimeError:
        missing = [str(rank) for rank, name in enumerate(names) if not store.check([name])]
        if not missing:
            raise
        raise LaunchError(f"rank {', '.join(missing)} did not come within {timeout_s:g} s") from None
    return [Card(**json.loads(store.get(name))) for name in names]


def agree(cards: Sequence[Card], *, share_gpu: bool) -> tuple[bool, int]:
    """Decide, from the same cards on each rank, whether all talk over NCCL, else over gloo: where ranks share a GPU,
    since NCCL refuses two on one. Returns that, and how many ranks use one GPU at most, by which all plan their memory
    alike: they must agree on which images they decode together. Raises `LaunchError` for machines that differ, and
    `ArgumentError` for ranks that share a GPU without `share_gpu`."""
    first = cards[0]
    for card in cards:
        for name, version in first.versions.items():
            if (other := card.versions.get(name, version)) != version:
                what = f"{card.where} has {name} {other}, and {first.where} has {version}"
                raise LaunchError(f"{what}: they must be the same")
        if card.device != first.device:
            kinds = {"cpu": "a CPU", "cuda": "a GPU"}
            theirs, ours = (kinds.get(each.device, each.device) for each in (card, first))
            what = f"{card.where} computes on {theirs}, and {first.where} on {ours}"
            raise LaunchError(f"{what}: all must have GPUs, or none")
    owners: dict[str | None, list[Card]] = {}
    for card in cards:
        owners.setdefault(card.gpu, []).append(card)
    shared = [each for gpu, each in owners.items() if gpu is not None and len(each) > 1]
    if shared and not share_gpu:
        same = shared[0]
        raise ArgumentError(
            f"{len(cards)} ranks need {len(cards)} GPUs, but rank {', '.join(str(card.rank) for card in same)} on "
            f"{same[0].machine} have the same one, {same[0].gpu}: use fewer, --device cpu, or --share-gpu to let ranks "
            "share one (slow)",
            parameter="tp",
        )
    return first.device == "cuda" and not shared, max(map(len, owners.values()))


def within(seconds: float, backend: str, work: Callable[[Begin], T]) -> T:
    """Run `work`, which says what it begins. Raises `LaunchError` with that if it fails or takes longer.

    It runs in a thread, which is left to itself if it hangs: nothing interrupts a library's call, and the library's own
    time limit ends the process before anybody is told why.
    """
    outcome: Future[T] = Future()
    begun = ["connecting"]

    def run() -> None:
        try:
            outcome.set_result(work(begun.append))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="connect", daemon=True).start()
    try:
        return outcome.result(seconds)
    except Krea2Error:
        raise
    except Exception as error:
        what, advice = f"{begun[-1]} over {backend}", _ADVICE[backend]
        if not outcome.done():
            raise LaunchError(f"{what} was not done within {seconds:g} s{advice}") from None
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise LaunchError(f"{what} failed: {lines[0]}{advice}") from error


def try_groups(mesh: Mesh, degrees: Degrees, device: torch.device, begin: Begin) -> None:
    """Try every operation on every group of a rank, in the same order on all ranks; but all_to_all only where ranks do
    exchange rows: with the first one NCCL takes half a gigabyte for each of a group's peers (see
    `step_memory.communication_bytes`). Raises `LaunchError` where a result is wrong."""
    for ranks, names in degrees.communicators(mesh.world.rank).items():
        who = f"{names[0]} group, ranks {', '.join(map(str, ranks))},"
        _try_operations(getattr(mesh, names[0]), who, device, begin, exchanges=not EXCHANGING.isdisjoint(names))


def _try_operations(group: Group, who: str, device: torch.device, begin: Begin, *, exchanges: bool) -> None:
    """Of rows (ranks, 4) float32: row i of rank r is 10 r + i."""
    size, rank = group.size, group.rank
    every = [[10 * source + row for row in range(size)] for source in range(size)]
    total = [sum(column) for column in zip(*every, strict=True)]
    ones = [1] * size
    operations: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], list[int]]] = {
        "all_reduce": (group.all_reduce, total),
        "reduce_scatter": (group.reduce_scatter, [total[rank]]),
        "all_gather": (group.all_gather, [number for rows in every for number in rows]),
        "all_to_all": (lambda mine: group.all_to_all(mine, ones, ones), [rows[rank] for rows in every]),
        "broadcast": (lambda mine: group.broadcast(mine, size - 1), every[-1]),
    }
    if not exchanges:
        del operations["all_to_all"]
    for name, (operation, expected) in operations.items():
        what = f"the first {name} of the {who}"
        begin(what)
        mine = torch.tensor(every[rank], dtype=torch.float32, device=device)[:, None].repeat(1, _WIDTH)
        found = operation(mine).tolist()  # waits for it
        if found != [[float(number)] * _WIDTH for number in expected]:
            raise LaunchError(f"{what} gave wrong numbers: {found} where each row should be one of {expected}")


def agree_on_attention(
    world: Group, device: torch.device, timings: dict[str, Timing], refused: dict[str, str]
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Agree on each backend's longest times over all ranks, and on refusals and their reasons: one rank's is enough.

    Every rank must call it. A backend that no rank timed or refused is left out. A step takes as long as its slowest
    rank, and different backends on different ranks would make an image differ from one start to the next.
    """
    if world.size == 1:
        return timings, refused
    known = timings | dict.fromkeys(refused, Timing(math.inf, math.inf))
    own = [known.get(backend, Timing(0.0, 0.0)) for backend in BACKENDS]
    row = torch.tensor([[number for timing in own for number in (timing.first_ms, timing.steady_ms)]], device=device)
    every = world.all_gather(row).view(world.size, len(BACKENDS), 2).tolist()
    agreed, refusals = {}, {}
    for backend, by_rank in zip(BACKENDS, zip(*every, strict=True), strict=True):
        first, steady = map(max, zip(*by_rank, strict=True))
        if first == math.inf:
            refuser = [first for first, _ in by_rank].index(math.inf)
            refusals[backend] = refused.get(backend, f"rank {refuser} cannot use it")
        elif first > 0:
            agreed[backend] = Timing(first, steady)
    return agreed, refusals
