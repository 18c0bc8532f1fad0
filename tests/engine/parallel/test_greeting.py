"""Ranks that meet know alike how to talk, or why they cannot."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from engine.config.degrees import Degrees
from engine.errors import ArgumentError, LaunchError
from engine.parallel.distributed import connect_mesh
from engine.parallel.greeting import Card, agree
from tests.damage import FULL, full_disk

CPU = torch.device("cpu")
VERSIONS = {"krea2-engine": "1.0", "torch": "2.11.0", "NCCL": "2.28.9"}


def gpus(*names: str) -> list[Card]:
    """Of ranks on two machines, by their GPUs."""
    return [Card(rank, f"node{rank // 2}", "cuda", name, VERSIONS) for rank, name in enumerate(names)]


def test_ranks_with_a_gpu_each_talk_over_nccl() -> None:
    assert agree(gpus("a", "b", "c", "d"), share_gpu=False) == (True, 1)
    assert agree(gpus("a", "b"), share_gpu=True) == (True, 1), "they may share one, and do not"


def test_ranks_on_cpus_talk_over_gloo() -> None:
    cards = [Card(rank, "node0", "cpu", None, VERSIONS) for rank in range(2)]
    assert agree(cards, share_gpu=False)[0] is False


def test_where_some_share_a_gpu_all_machines_talk_over_gloo() -> None:
    assert agree(gpus("a", "a", "b", "c"), share_gpu=True) == (False, 2)


def test_ranks_that_may_not_share_a_gpu_and_do_are_named() -> None:
    with pytest.raises(
        ArgumentError, match=r"3 ranks need 3 GPUs, but rank 0, 1 on node0 have the same one, a: .*--sh"
    ):
        agree(gpus("a", "a", "b"), share_gpu=False)


@pytest.mark.parametrize("name", VERSIONS)
def test_a_machine_with_another_version_is_named(name: str) -> None:
    cards = gpus("a", "b", "c", "d")
    cards[2] = replace(cards[2], versions={**VERSIONS, name: "0.1"})
    ours = VERSIONS[name]
    with pytest.raises(LaunchError, match=f"rank 2 on node1 has {name} 0.1, and rank 0 on node0 has {ours}: they must"):
        agree(cards, share_gpu=False)


def test_a_machine_without_gpus_among_others_is_named() -> None:
    cards = [*gpus("a", "b"), Card(2, "node1", "cpu", None, VERSIONS)]
    with pytest.raises(LaunchError, match="rank 2 on node1 computes on a CPU, and rank 0 on node0 on a GPU"):
        agree(cards, share_gpu=False)


def test_ranks_find_the_differing_one_when_they_meet(tmp_path: Path) -> None:
    other = Card.of(1, CPU)
    other = replace(other, machine="elsewhere", versions={**other.versions, "torch": "1.0"})
    store = dist.FileStore(str(tmp_path / "store"), 2)
    store.set("krea2/card/1", json.dumps(asdict(other)))
    with pytest.raises(LaunchError, match=r"rank 1 on elsewhere has torch 1\.0"):
        connect_mesh(0, Degrees(2), CPU, store_file=tmp_path / "store", timeout_s=60.0)


def test_a_rank_that_does_not_come_is_named(tmp_path: Path) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 4)
    store.set("krea2/card/2", json.dumps(asdict(Card.of(2, CPU))))
    with pytest.raises(LaunchError, match=r"rank 1, 3 did not come within 0\.2 s"):
        connect_mesh(0, Degrees(4), CPU, store_file=tmp_path / "store", timeout_s=0.2)


@pytest.mark.parametrize(("other", "backend"), [("GPU-2", "nccl"), ("GPU-1", "gloo")])
def test_gpus_that_may_be_shared_are_shared_only_where_they_must_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str, backend: str
) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H200")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="GPU-1"))
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    mine = Card.of(0, gpu)
    assert mine.gpu == "H200 GPU-1"
    store = dist.FileStore(str(tmp_path / "store"), 2)
    store.set("krea2/card/1", json.dumps(asdict(replace(mine, rank=1, gpu=f"H200 {other}"))))
    connected: list[tuple[str, torch.device | None]] = []

    def connect(backend: str, *, device_id: torch.device | None, **_: object) -> None:
        connected.append((backend, device_id))
        raise RuntimeError("there is no such GPU")

    monkeypatch.setattr(dist, "init_process_group", connect)
    with pytest.raises(LaunchError, match=f"connecting over {backend} failed: there is no such GPU"):
        connect_mesh(0, Degrees(2), gpu, store_file=tmp_path / "store", timeout_s=60.0, share_gpu=True)
    assert connected == [(backend, gpu if backend == "nccl" else None)]


def test_a_full_disk_names_the_file_where_ranks_meet(tmp_path: Path) -> None:
    file = tmp_path / "store"
    with full_disk(), pytest.raises(LaunchError, match=f"{file}: cannot be written: {FULL}"):
        connect_mesh(0, Degrees(sp=2), CPU, store_file=file, timeout_s=5.0)
