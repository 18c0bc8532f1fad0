"""`@Operation`, `@Kernel`: a torch reference and its Triton kernel in one module, which imports without Triton.

Triton exists on Linux only and takes half a second to import, so nothing imports it before the first launch. Until
then a kernel is its plain Python function, and `tl` in its module means nothing.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable
from functools import cached_property, partial, update_wrapper
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

if TYPE_CHECKING:
    import triton.language as tl
else:
    tl = None

__all__ = ["Kernel", "Operation", "launch_shape", "missing_for_kernels", "power_of_2", "tl"]

P = ParamSpec("P")
R = TypeVar("R")


class Operation(Generic[P, R]):
    """Calls the torch reference that it decorates, or where the first argument is on a GPU the kernel's launcher, which
    its `on_gpu` decorates."""

    __name__: str  # the reference's
    _launch: Callable[P, R]

    def __init__(self, reference: Callable[P, R]) -> None:
        self.reference = reference
        update_wrapper(self, reference)

    def on_gpu(self, launch: Callable[P, R]) -> Callable[P, R]:
        """Decorates the launcher, which computes the same by a kernel, and gives it the reference's types."""
        self._launch = launch
        return launch

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        x: Any = args[0]
        return (self._launch if x.is_cuda else self.reference)(*args, **kwargs)


class Kernel:
    """Decorates a Triton kernel, which its first launch, `kernel[grid](…)`, hands to `triton.jit`, and the functions
    that kernels call. unaligned: pointers whose kernel is not compiled anew where they are no multiples of 16 bytes."""

    def __init__(self, function: Callable[..., Any], unaligned: tuple[str, ...] = ()) -> None:
        self.function, self._unaligned = function, unaligned

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        # the compiler may turn a · b + c into one operation, which Triton 3.10 will no longer do unasked
        return partial(self.compiled[grid], enable_fp_fusion=True)

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"{self.function.__name__} is launched on a grid, or called by a kernel")

    @cached_property
    def compiled(self) -> Any:
        """What `triton.jit` makes of it. Kernels that it calls are found as globals of its module, like `tl`."""
        import triton
        import triton.language

        names = self.function.__globals__
        names["tl"] = triton.language
        for name, value in list(names.items()):
            if isinstance(value, Kernel) and value.function.__name__ in self.function.__code__.co_names:
                names[name] = value.compiled
        return triton.jit(self.function, do_not_specialize_on_alignment=self._unaligned)


def power_of_2(number: int) -> int:
    """Rounds up to a power of two, which the columns of a program must be."""
    return 1 << (number - 1).bit_length()


def launch_shape(width: int) -> tuple[int, int]:
    """Returns the columns that a program of one row holds, and its warps: 1024 columns each, at most 16."""
    block = power_of_2(width)
    return block, min(16, max(1, block // 1024))


def missing_for_kernels() -> str | None:
    """Names what this machine lacks to launch kernels on a GPU, None if it has all: Triton compiles the code that
    launches them with the system's C compiler."""
    if find_spec("triton") is None:
        return "the package triton"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "a C compiler (gcc, clang or CC)"
    header = Path(sysconfig.get_paths(scheme="posix_prefix")["include"]) / "Python.h"
    return None if header.exists() else f"Python's headers ({header}, often in a package python3-dev)"
