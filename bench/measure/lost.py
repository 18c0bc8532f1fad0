"""Whether a GPU is lost to a process: a kernel did something illegal, and each later answer is an error or wrong."""

from __future__ import annotations

import sys

LOST = 75  # the exit status of a benchmark that ended for it: `bench.survive` goes on with what is left
# What CUDA says, to this call or to any later one. A call that merely failed, as one without memory, says none of it.
_STICKY = (
    "an illegal memory access was encountered",
    "device-side assert triggered",
    "an illegal instruction was encountered",
    "misaligned address",
    "invalid program counter",
    "hardware stack error",
    "operation not supported on global/shared address space",
    "unspecified launch failure",
    "uncorrectable ECC error",
    "the launch timed out and was terminated",
)


class DeviceLost(Exception):
    """What this process computes from here on is wrong; the text says what went wrong first."""


def raise_if_lost(error: BaseException) -> None:
    """Raise `DeviceLost` if `error` says that the GPU is lost, or the GPU itself does."""
    if is_lost(error):
        raise DeviceLost(f"{type(error).__name__}: {error}") from error


def is_lost(error: BaseException) -> bool:
    """Whether `error` or one behind it comes of a lost GPU, or the GPU answers with one now."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        text = str(cause)
        if "CUDA" in text and any(sticky in text for sticky in _STICKY):
            return True
        cause = cause.__cause__ or cause.__context__
    torch = sys.modules.get("torch")  # without which no GPU was used
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False
