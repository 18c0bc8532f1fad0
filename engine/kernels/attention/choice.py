"""Which attention backends run on a device, and which of them serves images fastest there."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import pairwise

import torch

from engine.errors import ArgumentError
from engine.kernels.attention.backends import BACKENDS, VARLEN, GatedAttentionKernel
from engine.kernels.attention.flash_packages import FLASH_PACKAGES, package_function
from engine.kernels.attention.triton_kernel import LARGEST_HEAD_DIM
from engine.kernels.packing import Packing

AUTO = "auto"
REPEATS = 10  # of what is timed
# What ranks make together of what each of them found: timings, and reasons against backends, by backend.
Agree = Callable[[dict[str, "Timing"], dict[str, str]], tuple[dict[str, "Timing"], dict[str, str]]]
# What "auto" leaves alone: nobody has measured yet what it changes in an image.
ON_REQUEST = frozenset({"fa3-fp8"})
# Without measuring: by what others published for Hopper. flash is fa2's kernel, as torch was built with it. cuDNN comes
# after it, since it would stop for a plan at every new length, and who does not measure makes few images.
_PREFERRED = ("fa3", "flash", "fa2", "fa4", "cudnn", "triton", "torch")
_PREFERRED_IN_FLOAT32 = ("torch", "triton")  # whose products are not for tensor cores there, and spill registers
# The share of attention that cuDNN serves once a server has run for a while; flash serves lengths without a plan.
_WITH_A_PLAN = 0.85


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one gated attention: of the first for new lengths, for cuDNN with building a plan, and of each
    after that."""

    first_ms: float
    steady_ms: float


@dataclass(frozen=True)
class AttentionChoice:
    """What `GatedAttentionKernel` is to use; captured_backend is None where no varlen backend runs. timings: of every
    backend that was measured; refused: why the others were not, or failed."""

    backend: str
    captured_backend: str | None
    timings: dict[str, Timing]
    refused: dict[str, str]

    def describe(self) -> dict[str, str]:
        """Says for people what was chosen, and why."""
        measured = {
            name: f"{timing.steady_ms:.3f} ms, new lengths {timing.first_ms:.3f} ms"
            for name, timing in self.timings.items()
        }
        chosen = {"steps": self.backend, "graphs": self.captured_backend or "none"}
        return {**chosen, **measured, **{name: f"not used: {reason}" for name, reason in self.refused.items()}}


@dataclass(frozen=True)
class AttentionShape:
    """What a rank attends to: its own heads; lengths: tokens of each segment of a typical batch; fp8: whether
    the gated result is quantised for an fp8 product."""

    heads: int
    kv_heads: int
    head_dim: int
    lengths: Sequence[int]
    fp8: bool = False


def choose_attention(
    name: str,
    shape: AttentionShape,
    device: torch.device,
    dtype: torch.dtype,
    *,
    calls: int,
    measured: bool = True,
    agree: Agree = lambda timings, refused: (timings, refused),
) -> AttentionChoice:
    """Chooses the backends that an engine with `--attention name` uses.

    On a GPU every candidate is measured, in this thread, since cuDNN's plans belong to the thread that built them.
    "auto" takes FlashAttention 3 before cuDNN, which needs a plan for every length, and of the others what costs least
    over `calls` attentions of which the first meets new lengths; cuDNN's cost is flash's in part, which serves until a
    plan is built. Not `measured`, it takes what is usually fastest. Never one of `ON_REQUEST`. CUDA graphs get
    the named backend if it is varlen, else the fastest that is. agree: called once, on a GPU, with what was found,
    before anything is chosen. Raises `ArgumentError` if the named one does not run here.
    """
    where = device, dtype, shape.head_dim
    refused = {backend: reason for backend in BACKENDS if (reason := unavailable(backend, *where))}
    if device.type == "cuda" and not measured:
        _, refused = agree({}, refused)
    available = [backend for backend in BACKENDS if backend not in refused]
    if name != AUTO and name not in available:
        raise _not_available(name, refused)
    if device.type != "cuda":
        kernel = GatedAttentionKernel("torch" if name == AUTO else name)
        return AttentionChoice(kernel.backend, kernel.captured_backend, {}, refused)
    if not measured:
        order = _PREFERRED_IN_FLOAT32 if dtype == torch.float32 else _PREFERRED
        if name in ON_REQUEST:
            order = (name, *order)
        preferred = [backend for backend in order if backend in available]
        captured = next((backend for backend in preferred if backend in VARLEN), None)
        return AttentionChoice(preferred[0] if name == AUTO else name, captured, {}, refused)

    usual = [backend for backend in available if backend not in ON_REQUEST]
    wanted = [name] if name != AUTO else usual
    varlen = [backend for backend in wanted if backend in VARLEN] or [backend for backend in usual if backend in VARLEN]
    timings: dict[str, Timing] = {}
    for backend in dict.fromkeys([*wanted, *varlen]):
        if backend == "torch" and timings.keys() & {"cudnn", "flash"}:
            continue  # ends in one of those two
        try:
            timings[backend] = measure(backend, shape, device, dtype)
        except Exception as error:  # whatever a third party's kernel raises: the others still serve
            refused[backend] = _one_line(error)
    timings, refused = agree(timings, refused)
    if not timings.keys() & set(wanted):
        raise _not_available(name, refused)

    def cost(backend: str) -> float:
        timing = timings[backend]
        if backend == "cudnn" and "flash" in timings:
            return _WITH_A_PLAN * timing.steady_ms + (1 - _WITH_A_PLAN) * cost("flash")
        return (timing.first_ms + (calls - 1) * timing.steady_ms) / calls  # the mean over calls with the same lengths

    candidates = [backend for backend in wanted if backend in timings]
    if len(candidates) > 1 and "fa3" in candidates:
        candidates = [backend for backend in candidates if backend != "cudnn"]
    eager = min(candidates, key=cost)
    graphs = min((backend for backend in varlen if backend in timings), key=cost, default=None)
    return AttentionChoice(eager, graphs, timings, refused)


def unavailable(backend: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Says why the backend does not run on this device with such tensors; None if nothing is known against it."""
    if backend == "torch":
        return None
    if backend == "triton":
        if find_spec("triton") is None:
            return "triton is not installed"
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            return f"it needs a CUDA device, not {device.type}"
        fits = head_dim % 2 == 0 and head_dim <= LARGEST_HEAD_DIM
        return None if fits else f"its head dim is even and up to {LARGEST_HEAD_DIM}, not {head_dim}"
    if backend == "fa3-fp8" and head_dim % 16:
        return f"its head dim is a multiple of 16, not {head_dim}"
    generations, largest_head_dim, other_reason = _NEEDS[backend]
    if device.type != "cuda":
        return f"it needs a CUDA device, not {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    if major not in generations:
        capabilities = f"{generations[0]}.0 to {generations[-1]}.x"
        return f"it is for compute capability {capabilities}, this GPU has {major}.{minor}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it takes bfloat16, not {str(dtype).removeprefix('torch.')}"
    if head_dim % 8 or head_dim > largest_head_dim:
        return f"its head dim is a multiple of 8 up to {largest_head_dim}, not {head_dim}"
    return other_reason()


def measure(backend: str, shape: AttentionShape, device: torch.device, dtype: torch.dtype) -> Timing:
    """Times one backend on random input, gate included. Raises what it raises."""
    widths = [heads * shape.head_dim for heads in (shape.heads, shape.kv_heads, shape.kv_heads, shape.heads)]
    generator = torch.Generator(device).manual_seed(0)  # leaves the device's own, from which others draw, alone
    packed = torch.randn((sum(shape.lengths), sum(widths)), device=device, dtype=dtype, generator=generator)
    kernel = GatedAttentionKernel(backend)

    def milliseconds(lengths: Sequence[int], repeats: int) -> list[float]:
        packing = Packing(lengths, device)
        *qkv, gate = packed[: packing.tokens].split(widths, dim=-1)
        query, key, value = (part.unflatten(-1, (-1, shape.head_dim)) for part in qkv)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        events[0].record()
        for event in events[1:]:
            kernel(query, key, value, gate, packing, fp8=shape.fp8)
            event.record()
        events[-1].synchronize()
        return [start.elapsed_time(stop) for start, stop in pairwise(events)]

    milliseconds(shape.lengths, 2)  # compiles, loads libraries, fills the allocator's pools
    first = milliseconds([max(1, length - 1) for length in shape.lengths], 1)
    return Timing(first[0], statistics.median(milliseconds(shape.lengths, REPEATS)))


def _not_available(name: str, refused: dict[str, str]) -> ArgumentError:
    available = [backend for backend in BACKENDS if backend not in refused]
    reason = refused.get(name) or "; ".join(f"{backend}: {why}" for backend, why in refused.items())
    return ArgumentError(
        f"attention {name} is not available: {reason}; available here: {', '.join([AUTO, *available])}",
        parameter="attention",
    )


def _one_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__


def _cudnn() -> str | None:
    version = torch.backends.cudnn.version() or 0
    # Before, it was wrong for lengths that are no multiple of 128; torch avoids those versions as well.
    if version <= 91500:
        return f"it needs cuDNN 9.15.1 or newer, torch has {version}"
    reason = _flash()
    return reason and f"lengths without a plan need flash, and {reason}"


def _flash() -> str | None:
    return None if torch.backends.cuda.is_flash_attention_available() else "this torch was built without it"


def _import(package: str) -> str | None:
    try:
        package_function(package, "flash_attn_varlen_func")
        if FLASH_PACKAGES[package].dense:
            package_function(package, "flash_attn_func")
    except Exception as error:  # not installed, or built for another torch or CUDA
        return _one_line(error)
    return None


# Of each backend: major compute capabilities, the largest head dim, and what is against it that these do not tell.
_NEEDS: dict[str, tuple[range, int, Callable[[], str | None]]] = {
    "cudnn": (range(8, 13), 128, _cudnn),
    "flash": (range(8, 13), 256, _flash),
    **{name: (package.generations, 256, partial(_import, name)) for name, package in FLASH_PACKAGES.items()},
    "fa3-fp8": (FLASH_PACKAGES["fa3"].generations, 256, partial(_import, "fa3")),
}
