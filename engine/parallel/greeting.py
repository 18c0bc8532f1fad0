"""What ranks tell each other before they are connected, from which all conclude how to talk, or why they cannot."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

import engine
from engine.errors import ArgumentError, LaunchError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store


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
    """Hand in a rank's card and wait for all. Raises `LaunchError` if one has not come within `timeout_s` seconds."""
    names = [f"krea2/card/{rank}" for rank in range(ranks)]
    store.set(names[card.rank], json.dumps(asdict(card)))
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
