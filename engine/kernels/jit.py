"""`@kernel`: a Triton kernel beside its torch reference, in a module that imports without Triton.

Triton exists on Linux only and takes half a second to import, so nothing imports it before the first launch. Until
then a kernel is its plain Python function, and the name `tl` in it means nothing.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class Kernel:
    """A function that the first launch, `kernel[grid](…)`, hands to `triton.jit`."""

    def __init__(self, function: Callable[..., Any], unaligned: tuple[str, ...] = ()) -> None:
        self.function = function
        self._unaligned = unaligned
        self._compiled: Any = None

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        # the compiler may turn a · b + c into one operation, which Triton 3.10 will no longer do unasked
        return partial(self.compiled[grid], enable_fp_fusion=True)

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"{self.function.__name__} is launched on a grid, or called by a kernel")

    @property
    def compiled(self) -> Any:
        """What `triton.jit` makes of it. Kernels that it calls are found as globals of its module, like `tl`."""
        if self._compiled is None:
            import triton
            import triton.language

            self._compiled = triton.jit(self.function, do_not_specialize_on_alignment=self._unaligned)
            names = self.function.__globals__
            names["tl"] = triton.language
            for name, value in list(names.items()):
                if isinstance(value, Kernel) and value.function.__name__ in self.function.__code__.co_names:
                    names[name] = value.compiled
        return self._compiled


def kernel(function: Callable[..., Any]) -> Kernel:
    """Decorates a Triton kernel, and the device functions that kernels call."""
    return Kernel(function)


def kernel_with_unaligned(*names: str) -> Callable[[Callable[..., Any]], Kernel]:
    """As `kernel`. Pointers of these names are not compiled for anew where they are no multiples of 16 bytes."""
    return lambda function: Kernel(function, names)


def launch_shape(width: int) -> tuple[int, int]:
    """Columns that a program holds (a power of two, at least `width`), and its warps: 1024 columns each, at most 16."""
    block = 1 << (width - 1).bit_length()
    return block, min(16, max(1, block // 1024))


def missing_for_kernels() -> str | None:
    """What kernels cannot be launched on a GPU without, and this machine does not have: Triton compiles the code that
    launches them with the system's C compiler."""
    if find_spec("triton") is None:
        return "the package triton"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "a C compiler (gcc, clang or CC)"
    header = Path(sysconfig.get_paths(scheme="posix_prefix")["include"]) / "Python.h"
    return None if header.exists() else f"Python's headers ({header}, often in a package python3-dev)"
