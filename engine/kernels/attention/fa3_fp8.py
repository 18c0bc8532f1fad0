"""FlashAttention 3 on fp8 numbers: query, key and value as e4m3, with a scale for each segment and key/value head."""

from __future__ import annotations

from typing import NamedTuple

import torch

from engine.kernels.attention.flash_packages import flash_attention
from engine.kernels.fp8 import FP8, FP8_MAX, SMALLEST_SCALE
from engine.kernels.jit import Kernel, Operation, power_of_2, tl
from engine.kernels.packing import TILE_ROWS, Packing

_BLOCK_ROWS = 32  # rows of a tile that a program holds at a time


class Fp8Heads(NamedTuple):
    """Stands for values · scales. values: (tokens, heads, head_dim) e4m3; scales: (segments, kv_heads) float32, of each
    segment's rows in the heads that share a key/value head."""

    values: torch.Tensor
    scales: torch.Tensor


def flash_attention_fp8(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Attends as `packed_attention` without `causal`, shapes too, in fp8. Head dims are multiples of 16."""
    q, k, v = quantize_heads(query, key, value, packing)
    scales = {"q_descale": q.scales, "k_descale": k.scales, "v_descale": v.scales}
    return flash_attention("fa3", q.values, k.values, v.values, packing, **scales).to(query.dtype)


@Operation
def quantize_heads(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing
) -> tuple[Fp8Heads, Fp8Heads, Fp8Heads]:
    """Divides q, k and v by their largest magnitude / 448 in a segment's heads, without a host sync.

    query: (tokens, heads, head_dim); key, value: (tokens, kv_heads, head_dim), rows of any stride, heads side by side.
    """
    kv_heads, rows = key.shape[1], packing.row_segments.long()

    def quantize(part: torch.Tensor) -> Fp8Heads:
        grouped = part.float().unflatten(1, (kv_heads, -1))
        largest = part.new_zeros((packing.segments, kv_heads), dtype=torch.float32)
        of_rows = grouped.abs().amax(dim=(2, 3))
        largest = largest.scatter_reduce(0, rows[:, None].expand_as(of_rows), of_rows, "amax")
        scales = (largest / FP8_MAX).clamp_(min=SMALLEST_SCALE)
        scaled = grouped / scales[rows][:, :, None, None]
        return Fp8Heads(scaled.clamp_(-FP8_MAX, FP8_MAX).flatten(1, 2).to(FP8), scales)

    return quantize(query), quantize(key), quantize(value)


@quantize_heads.on_gpu
def quantize_heads_triton(query, key, value, packing) -> tuple[Fp8Heads, Fp8Heads, Fp8Heads]:
    """Launches two kernels, a program a tile and key/value head: one finds the scales, one reads all again."""
    (_, heads, head_dim), kv_heads = query.shape, key.shape[1]
    parts = (query, key, value)
    assert all(part.stride()[1:] == (head_dim, 1) for part in parts)
    values = [torch.empty(part.shape, dtype=FP8, device=part.device) for part in parts]
    # the bits of the largest magnitudes, which are ordered as these are
    largest = torch.zeros((packing.segments, 3, kv_heads), dtype=torch.int32, device=query.device)
    scales = torch.full(largest.shape, SMALLEST_SCALE, dtype=torch.float32, device=query.device)
    for launched, extra in ((_find_largest, ()), (_quantize, (*values, scales))):
        launched[(len(packing.tiles), kv_heads, 3)](
            *parts, *(part.stride(0) for part in parts), packing.tiles, packing.row_segments, largest, *extra,
            kv_heads,
            GROUP=heads // kv_heads, HEAD_DIM=head_dim, BLOCK_COLUMNS=power_of_2(heads // kv_heads * head_dim),
            TILE_ROWS=TILE_ROWS, BLOCK_ROWS=_BLOCK_ROWS, num_warps=8,
        )  # fmt: skip
    return tuple(map(Fp8Heads, values, scales.unbind(1)))  # type: ignore[return-value]


@Kernel
def _find_largest(
    query_ptr, key_ptr, value_ptr, query_stride, key_stride, value_stride, tiles_ptr, segments_ptr, largest_ptr,
    kv_heads,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    TILE_ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """Finds the largest magnitude in one tile of q, k or v (by part), in the GROUP heads of one key/value head."""
    tile = tiles_ptr + tl.program_id(0) * 3
    first, stop = tl.load(tile), tl.load(tile + 2)
    head, part = tl.program_id(1), tl.program_id(2)
    source, stride, width = query_ptr, query_stride, GROUP * HEAD_DIM
    if part == 1:
        source, stride, width = key_ptr, key_stride, HEAD_DIM
    if part == 2:
        source, stride, width = value_ptr, value_stride, HEAD_DIM
    columns = tl.arange(0, BLOCK_COLUMNS)[None, :]
    largest = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.int32)
    for block in tl.static_range(0, TILE_ROWS, BLOCK_ROWS):
        rows = first + block + tl.arange(0, BLOCK_ROWS)[:, None]
        mask = (rows < stop) & (columns < width)
        x = tl.load(source + rows.to(tl.int64) * stride + head * width + columns, mask=mask, other=0.0)
        # magnitudes are ordered as their bits are, with NaN above all, which a maximum of floats would leave out
        largest = tl.maximum(largest, x.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    segment = tl.load(segments_ptr + first)
    tl.atomic_max(largest_ptr + (segment * 3 + part) * kv_heads + head, tl.max(tl.max(largest, axis=1), axis=0))


@Kernel
def _quantize(
    query_ptr, key_ptr, value_ptr, query_stride, key_stride, value_stride, tiles_ptr, segments_ptr, largest_ptr,
    query_out, key_out, value_out, scales_ptr,
    kv_heads,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    TILE_ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """Quantises what the program of this tile, head and part of `_find_largest` read; a segment's first tile writes its
    scale."""
    tile = tiles_ptr + tl.program_id(0) * 3
    first, start, stop = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    head, part = tl.program_id(1), tl.program_id(2)
    source, stride, target, width = query_ptr, query_stride, query_out, GROUP * HEAD_DIM
    if part == 1:
        source, stride, target, width = key_ptr, key_stride, key_out, HEAD_DIM
    if part == 2:
        source, stride, target, width = value_ptr, value_stride, value_out, HEAD_DIM
    place = (tl.load(segments_ptr + first) * 3 + part) * kv_heads + head
    largest = tl.load(largest_ptr + place).to(tl.float32, bitcast=True)
    scale = tl.maximum(largest / 448.0, 1e-12, propagate_nan=tl.PropagateNan.ALL)
    if (first == start) & (start < stop):
        tl.store(scales_ptr + place, scale)
    columns = tl.arange(0, BLOCK_COLUMNS)[None, :]
    for block in tl.static_range(0, TILE_ROWS, BLOCK_ROWS):
        rows = first + block + tl.arange(0, BLOCK_ROWS)[:, None]
        mask = (rows < stop) & (columns < width)
        at = rows.to(tl.int64)
        x = tl.load(source + at * stride + head * width + columns, mask=mask, other=0.0)
        y = tl.minimum(tl.maximum(x.to(tl.float32) / scale, -448.0), 448.0)
        tl.store(target + at * width * kv_heads + head * width + columns, y.to(target.dtype.element_ty), mask=mask)
