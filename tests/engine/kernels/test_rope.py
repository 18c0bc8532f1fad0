"""Rotary embeddings: the tables against diffusers and transformers, the fused norm and rotation against float64."""

from __future__ import annotations

import pytest
import torch

from engine.kernels.packing import Packing
from engine.kernels.rope import (
    image_rotations,
    norm_rotate_,
    norm_rotate_to_ranks,
    norm_rotate_to_ranks_triton,
    norm_rotate_triton_,
    text_rotations,
)
from tests.engine.kernels.tolerances import DTYPES, poisoned

EPS = 1e-5
CPU = torch.device("cpu")
# q and k heads and their dimension: Krea 2's at TP 1 and 4, the demo's DiT and text encoder, one head of each
HEADS = [(48, 12, 128), (12, 3, 128), (8, 4, 16), (4, 4, 24), (1, 1, 2)]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 8), (64, 64), (4, 256)])
@pytest.mark.parametrize(("axes", "theta"), [((4, 6, 6), 1000.0), ((32, 48, 48), 1000.0), ((0, 8, 4), 77.0)])
def test_image_rotations_are_diffusers(height: int, width: int, axes: tuple[int, int, int], theta: float) -> None:
    pipeline = pytest.importorskip("diffusers").Krea2Pipeline
    krea2 = pytest.importorskip("diffusers.models.transformers.transformer_krea2")
    ids = pipeline.prepare_position_ids(0, height, width, CPU)
    cos, sin = krea2.Krea2RotaryPosEmbed(theta, list(axes))(ids)
    rotations = image_rotations(height, width, axes, theta)
    torch.testing.assert_close(rotations.real.repeat_interleave(2, dim=1), cos, atol=1e-7, rtol=0)
    torch.testing.assert_close(rotations.imag.repeat_interleave(2, dim=1), sin, atol=1e-7, rtol=0)


@pytest.mark.parametrize(("axes", "theta"), [((4, 6, 6), 1000.0), ((32, 48, 48), 1000.0), ((0, 8, 4), 77.0)])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (8, 3), (33, 17), (64, 64), (5, 256), (90, 160)])
def test_image_rotations_are_to_the_last_bit_those_of_angles_token_by_token(
    height: int, width: int, axes: tuple[int, int, int], theta: float
) -> None:
    rows = torch.arange(height, dtype=torch.float64).repeat_interleave(width)
    columns = torch.arange(width, dtype=torch.float64).repeat(height)
    angles = torch.cat(
        [
            torch.outer(position, theta ** (-torch.arange(0, axis, 2, dtype=torch.float64) / axis))
            for position, axis in zip((torch.zeros_like(rows), rows, columns), axes, strict=True)
        ],
        dim=1,
    )
    expected = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)
    assert torch.equal(image_rotations(height, width, axes, theta), expected)


def test_only_a_table_of_each_axis_is_placed() -> None:
    placed: list[tuple[int, ...]] = []

    def place(table: torch.Tensor) -> torch.Tensor:
        placed.append(tuple(table.shape))
        return table

    rotations = image_rotations(40, 30, (32, 48, 48), 1000.0, place=place)
    assert rotations.shape == (1200, 64)
    assert rotations.is_contiguous()
    assert placed == [(1, 16), (40, 24), (30, 24)]


@pytest.mark.parametrize("theta", [10_000.0, 5_000_000.0])
def test_text_rotations_are_transformers_mrope_for_text(theta: float) -> None:
    config_class = pytest.importorskip("transformers").Qwen3VLTextConfig
    qwen = pytest.importorskip("transformers.models.qwen3_vl.modeling_qwen3_vl")
    head_dim, tokens = 24, 50
    config = config_class(
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
    cos, sin = qwen.Qwen3VLTextRotaryEmbedding(config)(torch.empty(1), positions.expand(3, 1, -1))
    packed = torch.randn(tokens, 6 * head_dim)
    query, key = (part.unflatten(-1, (3, head_dim)) for part in packed.chunk(2, dim=-1))
    weights = torch.rand(2, head_dim) + 0.5
    query_normed, key_normed = (
        torch.nn.functional.rms_norm(heads, (head_dim,), weight, EPS)[None].transpose(1, 2)
        for heads, weight in ((query, weights[0]), (key, weights[1]))
    )
    expected = qwen.apply_rotary_pos_emb(query_normed, key_normed, cos, sin)
    norm_rotate_(query, key, *weights, EPS, text_rotations(positions, head_dim, theta), halves=True)
    for actual, heads in zip((query, key), expected, strict=True):
        torch.testing.assert_close(actual, heads.transpose(1, 2)[0], atol=2e-6, rtol=2e-6)


def test_interleaved_rotation_is_diffusers() -> None:
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    krea2 = pytest.importorskip("diffusers.models.transformers.transformer_krea2")
    pipeline = pytest.importorskip("diffusers").Krea2Pipeline
    heads, head_dim, grid = 3, 16, (5, 4)
    packed = torch.randn(20, 2 * heads * head_dim)
    query, key = (part.unflatten(-1, (heads, head_dim)) for part in packed.chunk(2, dim=-1))
    weights = torch.rand(2, head_dim) + 0.5
    cos_sin = krea2.Krea2RotaryPosEmbed(1000, [4, 6, 6])(pipeline.prepare_position_ids(0, *grid, CPU))
    expected = [
        embeddings.apply_rotary_emb(
            torch.nn.functional.rms_norm(part, (head_dim,), weight, EPS)[None], cos_sin, sequence_dim=1
        )[0]
        for part, weight in ((query, weights[0]), (key, weights[1]))
    ]
    norm_rotate_(query, key, *weights, EPS, image_rotations(*grid, (4, 6, 6), 1000.0))
    for actual, theirs in zip((query, key), expected, strict=True):
        torch.testing.assert_close(actual, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize("kind", ["neighbours", "halves", "none"])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items())
@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "head_dim"),
    [
        # many rows of a narrow model and one of the real one say in the fast run what many of the real one do
        pytest.param(tokens, *shape, marks=[pytest.mark.slow] if tokens * shape[0] > 100 else [])
        for tokens in (1, 5)
        for shape in HEADS
    ],
)
def test_norm_and_rotation_in_place_in_a_packed_matrix(
    tokens: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    tolerance: float,
    kind: str,
    triton: bool,
    device: torch.device,
) -> None:
    columns = [heads * head_dim, kv_heads * head_dim]
    packed = torch.randn(tokens, sum(columns) + 40).to(dtype)
    weights = torch.rand(2, head_dim) + 0.5
    angles = torch.rand(tokens, head_dim // 2) * 6
    rotations = None if kind == "none" else torch.polar(torch.ones_like(angles), angles)
    expected = [
        _norm_rotated(part.unflatten(-1, (-1, head_dim)), weight, angles, kind)
        for part, weight in zip(packed.split([*columns, 40], dim=-1)[:2], weights, strict=True)
    ]
    before = packed.clone()

    ours = packed.to(device) if triton else packed
    query, key = (part.unflatten(-1, (-1, head_dim)) for part in ours.split([*columns, 40], dim=-1)[:2])
    if triton:
        tables = rotations if rotations is None else rotations.to(device)
        norm_rotate_triton_(query, key, *weights.to(device), EPS, tables, halves=kind == "halves")
    else:
        norm_rotate_(query, key, *weights, EPS, rotations, halves=kind == "halves")
    tolerance *= 2 if dtype == torch.float32 else 3  # in bfloat16 rounded after the norm, too
    for actual, wide in zip((query, key), expected, strict=True):
        torch.testing.assert_close(actual.cpu().double(), wide, atol=tolerance, rtol=tolerance)
    assert torch.equal(ours[:, sum(columns) :].cpu(), before[:, sum(columns) :])


def _norm_rotated(heads: torch.Tensor, weight: torch.Tensor, angles: torch.Tensor, kind: str) -> torch.Tensor:
    """The formula: (tokens, heads, head_dim) → the same, float64."""
    wide = heads.double()
    normed = wide / (wide.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()
    if kind == "none":
        return normed
    cos, sin = angles.double().cos()[:, None], angles.double().sin()[:, None]
    half = heads.shape[-1] // 2
    a, b = (normed[..., :half], normed[..., half:]) if kind == "halves" else (normed[..., ::2], normed[..., 1::2])
    rotated = cos * a - sin * b, sin * a + cos * b
    return torch.cat(rotated, dim=-1) if kind == "halves" else torch.stack(rotated, dim=-1).flatten(-2)


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "head_dim", "ranks"),
    [(1, 48, 12, 128, 4), (5, 8, 4, 16, 2), (3, 8, 4, 16, 4), (2, 4, 4, 24, 4), (4, 6, 3, 16, 1), (0, 8, 4, 16, 4)],
)
def test_heads_are_laid_out_for_the_ranks_that_get_them(
    tokens: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    ranks: int,
    dtype: torch.dtype,
    rotated: bool,
    triton: bool,
    device: torch.device,
) -> None:
    """To the bit what is made in place, and v, whose parts are then put together."""
    device = device if triton else CPU
    columns = [count * head_dim for count in (heads, kv_heads, kv_heads, heads)]
    packed = torch.randn(tokens, sum(columns)).to(device, dtype)
    before = packed.clone()
    query, key, value, _ = (part.unflatten(-1, (-1, head_dim)) for part in packed.split(columns, dim=-1))
    weights = torch.rand(2, head_dim, device=device) + 0.5
    angles = torch.rand(tokens, head_dim // 2, device=device) * 6
    rotations = torch.polar(torch.ones_like(angles), angles) if rotated else None
    to_ranks, in_place = (
        (norm_rotate_to_ranks_triton, norm_rotate_triton_) if triton else (norm_rotate_to_ranks, norm_rotate_)
    )
    with poisoned(device):
        sent = to_ranks(query, key, value, *weights, EPS, rotations, ranks)
    assert torch.equal(packed, before)
    in_place(query, key, *weights, EPS, rotations)
    parts = [part.unflatten(1, (ranks, part.shape[1] // ranks)).transpose(0, 1) for part in (query, key, value)]
    assert torch.equal(sent, torch.cat(parts, dim=2).flatten(2))


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize(
    ("which", "dtype", "ranks"),
    [
        ((True, True), torch.float32, 0),
        ((True, False), torch.bfloat16, 0),
        ((True, True), torch.bfloat16, 2),
        ((False, True), torch.float32, 2),
    ],
)
def test_weights_by_segment_are_each_segments(
    which: tuple[bool, bool], dtype: torch.dtype, ranks: int, triton: bool, device: torch.device
) -> None:
    """As if each segment were alone with its weights; one may be empty."""
    device = device if triton else CPU
    head_dim, lengths = 16, (1, 0, 2)
    packing = Packing(lengths, device)
    columns = [count * head_dim for count in (4, 2, 2)]
    packed = torch.randn(sum(lengths), sum(columns)).to(device, dtype)
    weights = [torch.rand(len(lengths), head_dim, device=device) + 0.5 for _ in "qk"]
    given = [weight if each else weight[1] for weight, each in zip(weights, which, strict=True)]
    angles = torch.rand(sum(lengths), head_dim // 2, device=device) * 6
    rotations = torch.polar(torch.ones_like(angles), angles)
    to_ranks, in_place = (
        (norm_rotate_to_ranks_triton, norm_rotate_triton_) if triton else (norm_rotate_to_ranks, norm_rotate_)
    )

    def heads(rows: torch.Tensor) -> list[torch.Tensor]:
        return [part.unflatten(-1, (-1, head_dim)) for part in rows.split(columns, dim=-1)]

    expected = []
    for segment, (rows, turns) in enumerate(zip(packed.clone().split(lengths), rotations.split(lengths), strict=True)):
        own = [weight[segment] if each else weight[1] for weight, each in zip(weights, which, strict=True)]
        if ranks:
            expected.append(to_ranks(*heads(rows), *own, EPS, turns, ranks))
        else:
            in_place(*heads(rows)[:2], *own, EPS, turns)
            expected.append(rows)
    if ranks:
        actual = to_ranks(*heads(packed), *given, EPS, rotations, ranks, packing=packing)
    else:
        in_place(*heads(packed)[:2], *given, EPS, rotations, packing=packing)
        actual = packed
    tolerance = DTYPES[dtype]
    torch.testing.assert_close(actual, torch.cat(expected, dim=-2), atol=tolerance, rtol=tolerance)
