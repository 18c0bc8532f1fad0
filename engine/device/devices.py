"""Which device a rank computes on, copies to and from it, and whether its memory ran out."""

from __future__ import annotations

import math
import os
import traceback
from functools import cache

import torch

from engine.config.engine_config import EngineConfig
from engine.device.host_memory import HostMemory
from engine.errors import ArgumentError
from engine.kernels.jit import missing_for_kernels

_FP8_CAPABILITY = (8, 9)  # the least compute capability that multiplies fp8
# Of a GPU's memory (a part, but at least these bytes), what is left to what no plan counts: prompts' features that are
# kept, norms and tables as LoRAs make them, workspaces and plans of the libraries, what the allocator rounds up.
_RESERVE_PART, _LEAST_RESERVE = 0.03, 500_000_000
# How CUDA, Triton's loader, cuBLAS (of its handle, too), cuDNN before 9 and since, and torch's allocator on a CPU say
# it where they do not raise torch's own error; and torch's convolutions, when there is no memory for the workspace of
# any engine.
_OUT_OF_MEMORY = (
    "out of memory",
    "ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "ALLOCATION_FAILED",
    "unable to find an engine to execute this computation",
    "can't allocate memory",
)


def pick_device(config: EngineConfig, local_rank: int, local_ranks: int) -> torch.device:
    """Pick the device of a rank, one of `local_ranks` on this machine, and make a GPU the process's current one.

    Raises `ArgumentError` when CUDA is asked for and missing, when kernels cannot be launched on it, or when there are
    fewer GPUs than ranks and they may not share one. Where each process sees one GPU, whether that is the same one is
    found out when they meet: see `greeting.agree`.
    """
    gpus = torch.cuda.device_count() if config.device != "cpu" else 0
    if config.device == "cuda" and not gpus:
        raise ArgumentError(f"device cuda is not available: {why_no_gpu()}", parameter="device")
    if not gpus:
        return torch.device("cpu")
    if local_ranks > gpus > 1 and not config.share_gpu:
        raise ArgumentError(
            f"{local_ranks} ranks need {local_ranks} GPUs, but this machine has {gpus}: use fewer, "
            "--device cpu, or --share-gpu to let ranks share one (slow)",
            parameter="tp",
        )
    if (missing := missing_for_kernels()) is not None:
        raise ArgumentError(
            f"device cuda needs {missing}, which is not there; --device cpu does without", parameter="device"
        )
    device = torch.device("cuda", local_rank % gpus)
    torch.cuda.set_device(device)
    return device


def why_no_gpu() -> str:
    """Say why torch finds no GPU, and what to do about it."""
    instead = "--device cpu does without"
    if not torch.backends.cuda.is_built():
        where = "https://pytorch.org/get-started/locally"
        return f"torch {torch.__version__} was built without CUDA; install one that has it ({where}), or {instead}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.strip("-1, "):
        return f"CUDA_VISIBLE_DEVICES={visible!r} hides all GPUs, or {instead}"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return f"{' '.join(str(error).split())} Or {instead}"
    return f"torch finds no CUDA device; nvidia-smi lists those that the driver knows, or {instead}"


def device_name(device: torch.device) -> str:
    """Name a GPU as its maker does; a CPU is cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def gpu_uuids(device: torch.device) -> tuple[str, ...]:
    """Return the UUIDs of all GPUs that this process sees, in CUDA's order; none for a CPU."""
    if device.type != "cuda":
        return ()
    properties = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return tuple(str(getattr(each, "uuid", "")) for each in properties)


def pick_dtype(config: EngineConfig, device: torch.device) -> torch.dtype:
    """Pick the dtype of weights and activations; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    return torch.bfloat16 if config.dtype_on(device.type) == "bfloat16" else torch.float32


def decoding_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Pick the dtype of images between the decoder's layers, in a model of `dtype`: that, but float32 on a CPU without
    bfloat16, where torch's convolutions copy every patch, so that they take 3 times as long, and twice the memory."""
    lacking = device.type == "cpu" and dtype == torch.bfloat16 and not _convolves_bfloat16()
    return torch.float32 if lacking else dtype


@cache
def _convolves_bfloat16() -> bool:
    """Whether oneDNN convolves bfloat16 on this CPU: on x86 one with AVX-512. What torch itself goes by."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def check_quantization(config: EngineConfig, device: torch.device) -> None:
    """Raise `ArgumentError` where fp8 is asked for and a GPU cannot multiply it, or its dtype is not bfloat16."""
    if config.quantization != "fp8" or device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < _FP8_CAPABILITY:
        needed, found = (".".join(map(str, version)) for version in (_FP8_CAPABILITY, capability))
        raise ArgumentError(
            f"quantization fp8 needs a GPU of compute capability {needed}, and {device} is of {found}: use int8",
            parameter="quantization",
        )
    if config.dtype_on(device.type) != "bfloat16":
        raise ArgumentError("quantization fp8 needs dtype bfloat16 on a GPU, got float32", parameter="dtype")


def multiplies_fp8(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether fp8 matrices are multiplied as they are, where nobody asks for it: a CPU only emulates it."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return False
    return torch.cuda.get_device_capability(device) >= _FP8_CAPABILITY


def ranks_on_device(device: torch.device, ranks: int) -> int:
    """Count the ranks that share a device, of `ranks` on its machine."""
    return ranks if device.type == "cpu" else math.ceil(ranks / torch.cuda.device_count())


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy from the host without waiting for what is queued on the device."""
    return pinned(tensor, device).to(device, non_blocking=device.type == "cuda")


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to page-locked host memory, unless it is there, for a GPU to copy from by itself; a CPU needs none."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Copy to the host without waiting: the copy is whole when what is queued on the device now has been done."""
    if tensor.device.type != "cuda":
        return tensor
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


def reserve_bytes(device: torch.device) -> int:
    """Return the bytes of a device's free memory that work may not have, 0 on a CPU, which shares it with all else."""
    if device.type != "cuda":
        return 0
    return max(_LEAST_RESERVE, int(_RESERVE_PART * torch.cuda.get_device_properties(device).total_memory))


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that are free on a device; on a CPU what Linux could give, None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    host = HostMemory.read()
    return None if host is None else host.available


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this was raised for want of memory, after which the device can still be used."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _OUT_OF_MEMORY)


def release_tensors(error: BaseException) -> None:
    """Drop what is held by the functions that an error came through: the tensors of a forward that was broken off."""
    traceback.clear_frames(error.__traceback__)
