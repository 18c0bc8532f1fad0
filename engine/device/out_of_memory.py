"""How to tell that a device ran out of memory, and to let go of what was computed until then."""

from __future__ import annotations

import traceback

import torch

# How CUDA, Triton's loader, cuBLAS (of its handle, too), cuDNN before 9 and since, and torch's allocator on a CPU say
# it where they do not raise torch's own error; and torch's convolutions, when there is no memory for the workspace of
# any engine.
_WORDS = (
    "out of memory",
    "ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "ALLOCATION_FAILED",
    "unable to find an engine to execute this computation",
    "can't allocate memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this was raised for want of memory, after which the device can still be used."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def release_tensors(error: BaseException) -> None:
    """Drop what is held by the functions that an error came through: the tensors of a forward that was broken off."""
    traceback.clear_frames(error.__traceback__)
