"""What a device reaches at best: known of some GPUs, measured on a CPU. For the floors of those who ask for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine.device.devices import device_name

_SIDE, _COPIED, _REPEATS = 256, 4 << 20, 15  # of a matrix product; bytes of a copy; of which the fastest counts


@dataclass(frozen=True)
class DeviceRates:
    """FLOP/s of matrix products in 16 bits (on a CPU in the model's dtype) and in fp8, FLOP/s of attention, bytes/s of
    its memory. source: where these come from, in words."""

    flops: float
    fp8_flops: float
    attention_flops: float
    memory_bytes: float
    source: str


_PEAK = "its maker's peak"
# In bfloat16, without sparsity. An H200's are what `bench.step` measured (bench/results); the others', which nobody has
# measured here, what NVIDIA's data sheets say, fp8 at its faster accumulation.
_KNOWN = {
    "NVIDIA H200": DeviceRates(799e12, 1555e12, 630e12, 4.25e12, "as measured on another"),
    "NVIDIA H100 80GB HBM3": DeviceRates(989e12, 1979e12, 989e12, 3.35e12, _PEAK),
    "NVIDIA A100-SXM4-80GB": DeviceRates(312e12, 312e12, 312e12, 2.04e12, _PEAK),
    "NVIDIA A100-SXM4-40GB": DeviceRates(312e12, 312e12, 312e12, 1.56e12, _PEAK),
    "NVIDIA GeForce RTX 4090": DeviceRates(165e12, 661e12, 165e12, 1.01e12, _PEAK),
}


def device_rates(device: torch.device, dtype: torch.dtype) -> DeviceRates | None:
    """Tell what a device reaches in this dtype; None where that is not known. A CPU is measured now, in 20 ms or so."""
    if device.type == "cuda":
        return _KNOWN.get(device_name(device)) if dtype == torch.bfloat16 else None
    a, b = (torch.rand(_SIDE, _SIDE).to(dtype) for _ in range(2))
    source = torch.ones(_COPIED, dtype=torch.uint8)
    target = torch.empty_like(source)
    flops = 2 * _SIDE**3 / _fastest_s(lambda: torch.mm(a, b))
    return DeviceRates(flops, flops, flops, 2 * _COPIED / _fastest_s(lambda: target.copy_(source)), "measured just now")


def _fastest_s(call: Callable[[], object]) -> float:
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return max(min(times), 1e-9)
