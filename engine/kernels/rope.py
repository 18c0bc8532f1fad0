"""Rotary position embedding in the model's two forms: pairs of neighbours on three axes (DiT), of halves (text).

Tables hold the rotations as complex numbers cos + i·sin: rotating the pair (x0, x1) is one complex product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from engine.kernels.jit import Kernel, Operation, power_of_2, tl
from engine.kernels.packing import Packing

Place = Callable[[torch.Tensor], torch.Tensor]  # moves a table to another device
_HEADS_AT_ONCE = 16  # of a program: enough elements for 16-byte loads


def image_rotations(
    height: int, width: int, axes: Sequence[int], theta: float, *, place: Place = lambda table: table
) -> torch.Tensor:
    """Returns the rotations of a grid of image tokens: (height · width, sum(axes) / 2) complex64.

    Tokens sit at (0, row, column); `axes` are the head dims of these three axes. Angles are float64, as diffusers'
    `get_1d_rotary_pos_embed` has them. On the first axis, and for text, which sits at (0, 0, 0), nothing is rotated.
    place: moves each axis' table, of 1, `height` or `width` rows, from the CPU to where the grid is made of them.
    """
    tables = []  # of positions 0, 1, … on each axis: (length, axis / 2)
    for length, axis in zip((1, height, width), axes, strict=True):
        frequencies = theta ** (-torch.arange(0, axis, 2, dtype=torch.float64) / axis)
        angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
        tables.append(place(torch.polar(torch.ones_like(angles), angles).to(torch.complex64)))
    first, rows, columns = tables
    parts = [part.expand(height, width, -1) for part in (first[None], rows[:, None], columns[None])]
    return torch.cat(parts, dim=-1).flatten(0, 1)


def text_rotations(positions: torch.Tensor, head_dim: int, theta: float) -> torch.Tensor:
    """Returns the rotations of text tokens: positions (tokens,) → (tokens, head_dim / 2) complex64, angles in float32.

    With text alone Qwen3-VL's three position axes are equal, so its interleaved mRoPE is this plain RoPE.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = torch.outer(positions.float(), 1.0 / theta**exponents)
    return torch.polar(torch.ones_like(angles), angles)


@Operation
def norm_rotate_(
    query: torch.Tensor,
    key: torch.Tensor,
    query_norm: torch.Tensor,
    key_norm: torch.Tensor,
    eps: float,
    rotations: torch.Tensor | None,
    *,
    halves: bool = False,
    packing: Packing | None = None,
) -> None:
    """Norms each head of q and k by its RMS, then rotates its pairs, in place.

    query, key: (tokens, heads or kv_heads, head_dim), views into one packed q|k|… matrix, k right after q; query_norm,
    key_norm: (head_dim,) float32, or either (segments, head_dim), of the rows' packing; rotations: (tokens, head_dim /
    2) complex64, or None for no rotation (text fusion). Pairs are neighbours (x[2i], x[2i + 1]), or with `halves`
    (x[i], x[i + head_dim / 2]) as Qwen has them. As in diffusers and transformers the norm's output is rounded to the
    model's dtype before it is rotated in float32.
    """
    for heads, weight in ((query, query_norm), (key, key_norm)):
        heads.copy_(_norm_rotated(heads, weight, eps, rotations, packing, halves=halves))


@norm_rotate_.on_gpu
def norm_rotate_triton_(query, key, query_norm, key_norm, eps, rotations, *, halves=False, packing=None) -> None:
    _launch((query, key), query_norm, key_norm, eps, rotations, packing, halves=halves)


@Operation
def norm_rotate_to_ranks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_norm: torch.Tensor,
    key_norm: torch.Tensor,
    eps: float,
    rotations: torch.Tensor | None,
    ranks: int,
    *,
    packing: Packing | None = None,
) -> torch.Tensor:
    """Returns q and k as `norm_rotate_` makes them, and v, laid out for ranks of which each gets some heads: (ranks,
    tokens, (heads + 2 · kv_heads) · head_dim / ranks), a row being [q | k | v] of the rank's heads.

    The three are views into one packed q|k|v|… matrix, in this order; k and v have kv_heads. Consecutive heads go to
    the same rank, so that query heads stay with the key/value head that they share. Pairs are neighbours.
    """
    rotated = [
        _norm_rotated(heads, weight, eps, rotations, packing).to(heads.dtype)
        for heads, weight in ((query, query_norm), (key, key_norm))
    ]
    parts = [heads.unflatten(1, (ranks, -1)).transpose(0, 1) for heads in (*rotated, value)]
    return torch.cat(parts, dim=2).flatten(2)


@norm_rotate_to_ranks.on_gpu
def norm_rotate_to_ranks_triton(
    query, key, value, query_norm, key_norm, eps, rotations, ranks, *, packing=None
) -> torch.Tensor:
    return _launch((query, key, value), query_norm, key_norm, eps, rotations, packing, ranks=ranks)


def _norm_rotated(
    heads: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    rotations: torch.Tensor | None,
    packing: Packing | None,
    *,
    halves: bool = False,
) -> torch.Tensor:
    """Returns (tokens, heads, head_dim), in float32 where it is rotated, which the caller rounds."""
    if weight.dim() == 1:
        normed = F.rms_norm(heads.float(), weight.shape, weight, eps).to(heads.dtype)
    else:
        assert packing is not None
        of_rows = weight.index_select(0, packing.row_segments)[:, None]
        normed = F.rms_norm(heads.float(), heads.shape[-1:], None, eps).mul_(of_rows).to(heads.dtype)
    if rotations is None:
        return normed
    if halves:
        rotated = torch.complex(*normed.float().chunk(2, dim=-1)) * rotations[:, None]
        return torch.cat([rotated.real, rotated.imag], dim=-1)
    pairs = torch.view_as_complex(normed.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotations[:, None]).flatten(-2)


def _launch(parts, query_norm, key_norm, eps, rotations, packing, *, ranks=0, halves=False) -> torch.Tensor:
    """Launches a program for some heads of a row: of q and k, in place, or with `ranks` of q, k and v, to what is sent
    to these. Returns q, or what is sent."""
    query, key = parts[:2]
    (tokens, heads, head_dim), kv_heads = query.shape, key.shape[1]
    into = query.new_empty((ranks, tokens, (heads + 2 * kv_heads) // ranks * head_dim)) if ranks else query
    if not tokens:  # a share of fewer tokens than ranks; nothing has an address then
        return into
    for part, heads_before in zip(parts, (0, heads, heads + kv_heads), strict=False):
        assert part.data_ptr() == query.data_ptr() + heads_before * head_dim * query.element_size()
        assert tokens == 1 or part.stride() == (query.stride(0), head_dim, 1)
    all_heads = sum(part.shape[1] for part in parts)
    by_segment = [norm.dim() == 2 for norm in (query_norm, key_norm)]
    query_step, key_step = (
        norm.stride(0) * each for norm, each in zip((query_norm, key_norm), by_segment, strict=True)
    )
    _norm_rotate[(tokens, -(-all_heads // _HEADS_AT_ONCE))](
        query, into, query_norm, key_norm, query_norm if rotations is None else torch.view_as_real(rotations),
        packing.row_segments if any(by_segment) else query_norm,
        query.stride(0), heads, kv_heads, all_heads, head_dim, query_step, key_step, eps,
        HEADS=_HEADS_AT_ONCE, PAIRS=power_of_2(head_dim) // 2, ROTATE=rotations is not None, HALVES=halves,
        RANKS=ranks, PER_SEGMENT=any(by_segment), num_warps=4,
    )  # fmt: skip
    return into


@Kernel
def _norm_rotate(
    x_ptr, y_ptr, query_norm_ptr, key_norm_ptr, rotation_ptr, segment_ptr,
    row_stride, query_heads, kv_heads, all_heads, head_dim, query_norm_stride, key_norm_stride, eps,
    HEADS: tl.constexpr, PAIRS: tl.constexpr, ROTATE: tl.constexpr, HALVES: tl.constexpr, RANKS: tl.constexpr,
    PER_SEGMENT: tl.constexpr,
):  # fmt: skip
    """Norms and rotates HEADS heads of one row, (HEADS, PAIRS) twice. With RANKS they are written to y_ptr, laid out
    for ranks, and v's copied; without, what was read is overwritten. PER_SEGMENT: the norms' weights are those of the
    row's segment."""
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    is_head = heads < all_heads
    x_ptr += row * row_stride
    x_a, x_b = _load_pairs(x_ptr + heads * head_dim, is_head, head_dim, HEADS, PAIRS, HALVES)
    scale = tl.rsqrt((tl.sum(x_a * x_a, axis=1) + tl.sum(x_b * x_b, axis=1)) / head_dim + eps)[:, None]
    if PER_SEGMENT:
        segment = tl.load(segment_ptr + row).to(tl.int64)
        query_norm_ptr += segment * query_norm_stride
        key_norm_ptr += segment * key_norm_stride
    # as many rows of q's and k's weights as there are heads, since a load cannot choose between pointers
    query_a, query_b = _load_pairs(query_norm_ptr + heads * 0, is_head, head_dim, HEADS, PAIRS, HALVES)
    key_a, key_b = _load_pairs(key_norm_ptr + heads * 0, is_head, head_dim, HEADS, PAIRS, HALVES)
    is_query = heads < query_heads
    a = (x_a * scale * tl.where(is_query, query_a, key_a)).to(x_ptr.dtype.element_ty).to(tl.float32)
    b = (x_b * scale * tl.where(is_query, query_b, key_b)).to(x_ptr.dtype.element_ty).to(tl.float32)
    if ROTATE:
        cos, sin = _load_pairs(rotation_ptr + row * head_dim + heads * 0, is_head, head_dim, HEADS, PAIRS, False)
        a, b = cos * a - sin * b, sin * a + cos * b
    if RANKS:
        is_value = heads >= query_heads + kv_heads
        a, b = tl.where(is_value, x_a, a), tl.where(is_value, x_b, b)
        # a head's number among those of its kind, how many of that kind a rank gets, and how many heads lie before them
        number = heads - tl.where(is_query, 0, tl.where(is_value, query_heads + kv_heads, query_heads))
        query_share, kv_share = query_heads // RANKS, kv_heads // RANKS
        share = tl.where(is_query, query_share, kv_share)
        before = tl.where(is_query, 0, tl.where(is_value, query_share + kv_share, query_share))
        rows_before = number // share * tl.num_programs(0) + row
        slot = rows_before * (query_share + 2 * kv_share) + before + number % share
        _store_pairs(y_ptr + slot * head_dim, a, b, is_head, head_dim, HEADS, PAIRS, HALVES)
    else:
        _store_pairs(x_ptr + heads * head_dim, a, b, is_head, head_dim, HEADS, PAIRS, HALVES)


@Kernel
def _load_pairs(pointers, is_head, head_dim, HEADS: tl.constexpr, PAIRS: tl.constexpr, HALVES: tl.constexpr):
    """Loads the first and the second elements of every pair, (HEADS, PAIRS) float32 each; pointers: (HEADS, 1)."""
    if HALVES:
        pairs = tl.arange(0, PAIRS)[None, :]
        mask = is_head & (pairs < head_dim // 2)
        a = tl.load(pointers + pairs, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(pointers + head_dim // 2 + pairs, mask=mask, other=0.0).to(tl.float32)
    else:
        columns = tl.arange(0, 2 * PAIRS)[None, :]
        x = tl.load(pointers + columns, mask=is_head & (columns < head_dim), other=0.0).to(tl.float32)
        a, b = tl.split(tl.reshape(x, (HEADS, PAIRS, 2)))
    return a, b


@Kernel
def _store_pairs(pointers, a, b, is_head, head_dim, HEADS: tl.constexpr, PAIRS: tl.constexpr, HALVES: tl.constexpr):
    """Stores what `_load_pairs` loads."""
    dtype = pointers.dtype.element_ty
    if HALVES:
        pairs = tl.arange(0, PAIRS)[None, :]
        mask = is_head & (pairs < head_dim // 2)
        tl.store(pointers + pairs, a.to(dtype), mask=mask)
        tl.store(pointers + head_dim // 2 + pairs, b.to(dtype), mask=mask)
    else:
        columns = tl.arange(0, 2 * PAIRS)[None, :]
        x = tl.reshape(tl.join(a, b), (HEADS, 2 * PAIRS))
        tl.store(pointers + columns, x.to(dtype), mask=is_head & (columns < head_dim))
