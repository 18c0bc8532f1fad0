"""Fixtures of the demo's trainings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

SMALL_PICTURES = (1, 1, 0, 0, 0, 0, 0, 0, 0, 0)  # how often each size is drawn
SMALL = {
    "demo.autoencoder.CROPS": ((64, 2), (96, 2)),
    "demo.autoencoder.MEASURED": 16,
    "demo.latents.WEIGHTS": SMALL_PICTURES,
    "demo.latents._ENCODED_AT_ONCE": 4,
    "demo.transformer.PROMPTS": 300,
    "demo.transformer.HELD_OUT_BATCHES": 1,
    "demo.distill.WEIGHTS": SMALL_PICTURES,
    "demo.distill._WALKS_AT_ONCE": 4,
    "demo.release.DEFAULTS": {"raw": {"default_steps": 2, "default_guidance": 2.0}, "turbo": {}},
}


@pytest.fixture(scope="module")
def small_trainings() -> Iterator[None]:
    """The demo's stages take few and small pictures at a time, and compile nothing: that takes longer than the few
    steps of tests."""
    with pytest.MonkeyPatch.context() as patch, torch.compiler.set_stance("force_eager"):
        for name, value in SMALL.items():
            patch.setattr(name, value)
        yield
