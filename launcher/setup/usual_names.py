"""Devices and number formats under the names that torch and others have for them."""

from __future__ import annotations

import os
import re

from engine.errors import ArgumentError

_DTYPES = {"bf16": "bfloat16", **dict.fromkeys(("fp32", "f32", "float", "full"), "float32")}
_HALF = ("float16", "fp16", "f16", "half")
_EIGHT_BITS = {"fp8": "fp8", "float8": "fp8", "float8_e4m3fn": "fp8", "fp8_e4m3fn": "fp8", "int8": "int8"}
_OTHER_GPUS = ("mps", "metal", "xpu", "npu", "hip", "rocm", "directml", "vulkan")


def own_dtype(dtype: object) -> str:
    """Return our name of a number format: a torch.dtype, or what is short for one. Others stay, in lower case.

    Raises `ArgumentError` for those that are to be had otherwise, or not at all.
    """
    name = str(dtype).removeprefix("torch.").lower()
    if name in _HALF:
        problem = "the model was trained in bfloat16, whose range float16 has not; bfloat16 takes as many bytes"
        raise ArgumentError(f"dtype {name} is not offered: {problem}", parameter="dtype")
    if name in _EIGHT_BITS:
        quantization = _EIGHT_BITS[name]
        problem = f"quantization={quantization} has the blocks' matrices in 8 bits, and all else in dtype bfloat16"
        raise ArgumentError(f"dtype {name} is no format to compute in: {problem}", parameter="dtype")
    return _DTYPES.get(name, name)


def own_device(device: object) -> str:
    """Return our name of a device as torch has it. Others stay, in lower case.

    Raises `ArgumentError` for a GPU that is chosen otherwise, and for those that there are no kernels for.
    """
    name = str(device).lower()
    if (match := re.fullmatch(r"(?:cuda|gpu):([0-9]{1,3})", name)) and match[1] != "0":
        chosen = f"CUDA_VISIBLE_DEVICES={_visible(int(match[1]))}"
        raise ArgumentError(
            f"device {name}: which GPUs are used is chosen by an environment variable, as {chosen} krea2 … (of several "
            "GPUs, with commas), or before a Python program starts",
            parameter="device",
        )
    if name.partition(":")[0] in _OTHER_GPUS:
        raise ArgumentError(
            f"device {name}: there are kernels for Nvidia's GPUs, cuda, and for cpu", parameter="device"
        )
    return {"gpu": "cuda", "gpu:0": "cuda", "cuda:0": "cuda"}.get(name, name)


def _visible(index: int) -> str:
    """What `CUDA_VISIBLE_DEVICES` calls a GPU that this process would call `index`."""
    listed = [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return listed[index] if index < len(listed) else str(index)
