"""What devices reach: known by name, or measured."""

from __future__ import annotations

import pytest
import torch

from engine.device import rates
from engine.device.rates import device_rates


def test_a_cpu_is_measured() -> None:
    found = device_rates(torch.device("cpu"), torch.float32)
    assert found is not None
    assert found.source == "measured just now"
    assert min(found.flops, found.fp8_flops, found.attention_flops, found.memory_bytes) > 0


def test_a_gpu_is_known_by_its_name_in_16_bits_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(rates, "device_name", lambda _: "NVIDIA H200")
    known = device_rates(gpu, torch.bfloat16)
    assert known is not None
    assert known.fp8_flops > known.flops > known.attention_flops
    assert device_rates(gpu, torch.float32) is None
    monkeypatch.setattr(rates, "device_name", lambda _: "NVIDIA Never Heard Of")
    assert device_rates(gpu, torch.bfloat16) is None
