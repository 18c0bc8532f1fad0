"""Rotary embeddings against diffusers (interleaved, three axes) and transformers (half split)."""

from __future__ import annotations

import pytest
import torch
from diffusers import Krea2Pipeline
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_krea2 import Krea2RotaryPosEmbed
from transformers import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding, apply_rotary_pos_emb

from engine.kernels.norm import rms_norm
from engine.kernels.rope import image_rotations, norm_rotate_, norm_rotate_halves, text_rotations

EPS = 1e-5
CPU = torch.device("cpu")


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 8), (64, 64), (4, 256)])
@pytest.mark.parametrize(("axes", "theta"), [((4, 6, 6), 1000.0), ((32, 48, 48), 1000.0), ((0, 8, 4), 77.0)])
def test_image_rotations_are_diffusers(height: int, width: int, axes: tuple[int, int, int], theta: float) -> None:
    ids = Krea2Pipeline.prepare_position_ids(0, height, width, CPU)
    cos, sin = Krea2RotaryPosEmbed(theta, list(axes))(ids)
    rotations = image_rotations(height, width, axes, theta)
    torch.testing.assert_close(rotations.real.repeat_interleave(2, dim=1), cos, atol=1e-7, rtol=0)
    torch.testing.assert_close(rotations.imag.repeat_interleave(2, dim=1), sin, atol=1e-7, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_and_rotation_in_place_on_a_column_slice(dtype: torch.dtype) -> None:
    heads, head_dim, grid = 3, 16, (5, 4)
    packed = torch.randn(20, 128).to(dtype)
    before = packed.clone()
    query = packed[:, 32 : 32 + heads * head_dim].unflatten(-1, (heads, head_dim))
    weight = torch.rand(head_dim) + 0.5
    ids = Krea2Pipeline.prepare_position_ids(0, *grid, CPU)
    cos_sin = Krea2RotaryPosEmbed(1000, [4, 6, 6])(ids)
    expected = apply_rotary_emb(rms_norm(query, weight, EPS)[None], cos_sin, sequence_dim=1)[0]

    norm_rotate_(query, weight, EPS, image_rotations(*grid, (4, 6, 6), 1000.0))
    tolerance = 1e-6 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(query, expected, atol=tolerance, rtol=tolerance)
    assert torch.equal(packed[:, :32], before[:, :32])
    assert torch.equal(packed[:, 80:], before[:, 80:])


def test_without_rotations_only_the_norm_is_applied() -> None:
    heads = torch.randn(7, 2, 24)
    expected = rms_norm(heads, torch.full((24,), 2.0), EPS)
    assert torch.equal(norm_rotate_(heads, torch.full((24,), 2.0), EPS, None), expected)


@pytest.mark.parametrize("theta", [10_000.0, 5_000_000.0])
def test_text_rotations_are_transformers_mrope_for_text(theta: float) -> None:
    head_dim, tokens = 24, 50
    config = Qwen3VLTextConfig(
        hidden_size=96,
        num_attention_heads=4,
        head_dim=head_dim,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": theta,
            "mrope_section": [4, 4, 4],
            "mrope_interleaved": True,
        },
    )
    positions = torch.arange(tokens)
    cos, sin = Qwen3VLTextRotaryEmbedding(config)(torch.empty(1), positions.expand(3, 1, -1))
    query = torch.randn(tokens, 4, head_dim)
    weight = torch.rand(head_dim) + 0.5
    normed = rms_norm(query, weight, 1e-6)[None].transpose(1, 2)
    expected = apply_rotary_pos_emb(normed, normed, cos, sin)[0].transpose(1, 2)[0]
    actual = norm_rotate_halves(query, weight, 1e-6, text_rotations(positions, head_dim, theta))
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=2e-6)
