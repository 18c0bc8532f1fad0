"""What the tests of the fake device have in common."""

from __future__ import annotations

import torch

from tests.fake_cuda import FakeCuda

CUDA = torch.device("cuda", 0)


def rules(device: FakeCuda) -> set[str]:
    """The rules that were broken."""
    return {said.partition(":")[0] for said in device.violations}


def pinned(size: int = 4) -> torch.Tensor:
    return torch.ones(size).pin_memory()


def on_device(size: int = 4) -> torch.Tensor:
    return pinned(size).to(CUDA, non_blocking=True)
