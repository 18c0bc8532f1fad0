"""How the engine's benchmarks measure: spreads, calls timed on the device, its ceilings, its state, and a budget."""

from __future__ import annotations

import resource
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from engine.config.components import TransformerConfig
from engine.kernels.attention.choice import AttentionShape, choose_attention
from engine.kernels.fp8 import FP8, Fp8Rows, fp8_linear
from engine.planning.floor import Ceilings, attention_flops

WARM_UP = 3  # calls before the first that counts
_CEILING_REPEATS = 20
_OTHERS_MIB = 2048  # of the GPU's memory that are not torch's: more than contexts and libraries of ours take
_ATTENTION_TOKENS = 4160  # an image of 1024² with 64 text tokens


@dataclass(frozen=True)
class Spread:
    """Of several measurements of one thing, in seconds; percentiles are interpolated."""

    count: int
    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """values: at least one."""
        return cls(len(values), *(percentile(values, percent) for percent in (50, 10, 90)))


def percentile(values: Sequence[float], percent: float) -> float:
    """Interpolated between the two nearest values."""
    return float(np.percentile(values, percent))


def time_calls(call: Callable[[], object], count: int, device: torch.device) -> list[float]:
    """Time `count` calls: seconds that the device spends on each, from the end of the one before.

    One call that does not count goes first. On a GPU calls are queued one ahead of the one that runs, as the front-end
    does, and timed by events; so a gap that the host leaves between two calls counts.
    """
    if device.type != "cuda":
        times = []
        for _ in range(count + 1):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        return times[1:]
    events = []
    for _ in range(count + 1):
        call()
        events.append(torch.cuda.Event(enable_timing=True))
        events[-1].record()
        if len(events) > 1:
            events[-2].synchronize()
    events[-1].synchronize()
    return [before.elapsed_time(after) / 1e3 for before, after in pairwise(events)]


class Timestamps:
    """Records points in time, of the device's queue on a GPU and of the host elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []

    def record(self) -> None:
        """Record this point. Does not wait for the device."""
        if self._on_gpu:
            self._events.append(torch.cuda.Event(enable_timing=True))
            self._events[-1].record()
        else:
            self._times.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Return the seconds between each record and the next. Waits until the device has got to the last."""
        if not self._on_gpu:
            return [after - before for before, after in pairwise(self._times)]
        self._events[-1].synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in pairwise(self._events)]


class Budget:
    """Seconds that a benchmark may take in all, from now on; None: as long as it takes."""

    def __init__(self, seconds: float | None) -> None:
        self._due = None if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> float:
        return float("inf") if self._due is None else self._due - time.monotonic()

    @property
    def spent(self) -> bool:
        return self.left <= 0


def measure_ceilings(config: TransformerConfig, device: torch.device, dtype: torch.dtype) -> Ceilings:
    """What this device reaches now: a matrix product of 8192³ random numbers, the same in fp8, its best attention at
    this model's heads and 4160 tokens, and a copy of 2 GiB, read and write counted. On a CPU the product is of 512³,
    the copy of 64 MiB, attention is not measured, and fp8 is computed as float32."""
    on_gpu = device.type == "cuda"
    side = 8192 if on_gpu else 512
    a, b = (torch.randn((side, side), device=device, dtype=dtype) for _ in range(2))
    has_fp8 = on_gpu and torch.cuda.get_device_capability(device) >= (8, 9)
    return Ceilings(
        matmul_flops=_matmul_rate(a, b),
        fp8_flops=_fp8_rate(a, b) if has_fp8 else None,
        attention_flops=_attention_rate(config, device, dtype) if on_gpu else None,
        copy_bytes=_copy_rate(1 << (31 if on_gpu else 26), device),
    )


def _matmul_rate(a: torch.Tensor, b: torch.Tensor) -> float:
    product = torch.empty_like(a)
    return 2 * a.shape[0] ** 3 / _median_s(lambda: torch.mm(a, b, out=product), a.device)


def _fp8_rate(a: torch.Tensor, b: torch.Tensor) -> float:
    scales = torch.ones((a.shape[0], 1), device=a.device)
    x, weight = (Fp8Rows(tensor.to(FP8), scales, torch.bfloat16) for tensor in (a, b))
    return 2 * a.shape[0] ** 3 / _median_s(lambda: fp8_linear(x, weight), a.device)


def _attention_rate(config: TransformerConfig, device: torch.device, dtype: torch.dtype) -> float:
    """Of the fastest backend that runs here, its gate included."""
    lengths = (_ATTENTION_TOKENS,)
    shape = AttentionShape(config.num_heads, config.num_kv_heads, config.head_dim, lengths)
    timings = choose_attention("auto", shape, device, dtype, calls=config.num_layers).timings
    flops = attention_flops(config, lengths) / config.num_layers
    return flops / min(timing.steady_ms for timing in timings.values()) * 1e3


def _copy_rate(count: int, device: torch.device) -> float:
    source = torch.empty(count, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * count / _median_s(lambda: target.copy_(source), device)


def _median_s(call: Callable[[], object], device: torch.device) -> float:
    time_calls(call, WARM_UP, device)
    return Spread.of(time_calls(call, _CEILING_REPEATS, device)).median


def reset_peak_memory(device: torch.device) -> None:
    """What `peak_memory` says counts from here, where that is possible."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """The most bytes that torch had allocated on a GPU; on a CPU the most that this process ever used."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def gpu_state(device: torch.device) -> dict[str, float | str] | None:
    """Clocks, power, temperature and memory of the GPU as nvidia-smi gives them; None without either.

    `others_mib` is what other processes hold of its memory, by torch's account of our own; a CUDA context of some
    hundred MiB is in it.
    """
    if device.type != "cuda":
        return None
    fields = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "memory.used", "utilization.gpu")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    state: dict[str, float | str] = {
        name: _number(value) for name, value in zip(fields, line.split(", "), strict=False)
    }
    state["others_mib"] = _others_mib(device)
    return state


def _others_mib(device: torch.device) -> int:
    free, total = torch.cuda.mem_get_info(device)
    return round((total - free - torch.cuda.memory_reserved(device)) / 2**20)


def is_shared_now(device: torch.device) -> bool:
    """As `is_shared`, now, without nvidia-smi."""
    return device.type == "cuda" and _others_mib(device) > _OTHERS_MIB


def is_shared(*states: dict[str, float | str] | None) -> bool:
    """Whether another process was on the GPU in one of these states: what was measured then is not valid."""
    return any(state is not None and float(state["others_mib"]) > _OTHERS_MIB for state in states)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
