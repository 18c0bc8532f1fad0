"""Host memory for weights, pinned where that is granted, and the ledger of what is on the device."""

from __future__ import annotations

import logging

import pytest
import torch

from engine.offload import host_buffers
from engine.offload.host_buffers import HostMemory, WeightLedger

CPU = torch.device("cpu")


def test_where_there_is_no_pinned_memory_ordinary_memory_does_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def refuse(size: int) -> torch.Tensor:
        asked.append(size)
        raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(host_buffers, "pinned", refuse)
    host = HostMemory(torch.device("cuda"))
    with caplog.at_level(logging.WARNING):
        assert [host.allocate(size).numel() for size in (10, 20)] == [10, 20]
    assert asked == [10]
    assert [record.getMessage() for record in caplog.records] == [
        "no pinned host memory, so that copying weights takes longer: CUDA error: out of memory"
    ]


def test_a_cpu_needs_no_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_buffers, "pinned", pytest.fail)
    assert HostMemory(CPU).allocate(7).numel() == 7


def test_the_ledger_keeps_the_most_that_was_there_at_a_time() -> None:
    ledger = WeightLedger(CPU)
    ledger.count(10)
    assert ledger.allocate(5).numel() == 5
    ledger.count(-10)
    ledger.count(3)
    assert (ledger.resident, ledger.peak) == (8, 15)
