"""Kernels run on the GPU, and in Triton's interpreter on the CPU where there is none."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from tests.conftest import INTERPRETED


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where `…_triton` functions run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _fresh_numbers() -> None:
    torch.seed()  # a failure prints its tensors' differences; no case depends on which numbers these are


@pytest.fixture(scope="session", autouse=True)
def _loops_with_run_time_bounds() -> None:
    """Triton 3.6's interpreter makes an int of an array of one element, which NumPy 2.4 refuses; 3.9's does not."""
    if not INTERPRETED or find_spec("triton") is None:
        return
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_index_too(tensor: type, scope: object) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_index_too
