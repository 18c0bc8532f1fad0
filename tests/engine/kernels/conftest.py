"""Kernels run on the GPU, and in Triton's interpreter on the CPU where there is none."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where `…_triton` functions run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _fresh_numbers() -> None:
    torch.seed()  # a failure prints its tensors' differences; no case depends on which numbers these are


@pytest.fixture(scope="session", autouse=True)
def _any_triton(loops_with_run_time_bounds: None) -> None:
    """Kernels have loops."""
