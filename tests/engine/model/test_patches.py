"""Latents to tokens and back; that tokens are those of diffusers is in `test_sampling`."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.model.patches import pack_latents, unpack_latents


@given(channels=st.integers(1, 4), height=st.integers(1, 5), width=st.integers(1, 5), patch=st.integers(1, 3))
def test_unpacking_undoes_packing(channels: int, height: int, width: int, patch: int) -> None:
    latents = torch.randn(channels, height * patch, width * patch)
    tokens = pack_latents(latents, patch)
    assert tokens.shape == (height * width, channels * patch**2)
    assert torch.equal(unpack_latents(tokens, height, width, patch), latents)
