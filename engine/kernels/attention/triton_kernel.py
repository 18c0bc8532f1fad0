"""Attention as one Triton kernel: every segment in one launch, grouped key/value heads, the gate in the epilogue.

A program owns a tile of one segment's queries in one head and walks over that segment's keys, keeping a running
softmax in float32 (FlashAttention 2, arXiv 2307.08691). It knows the packing by the tables on the device alone, so a
CUDA graph that was captured with one packing serves others.
"""

from __future__ import annotations

import math

import torch

from engine.kernels.jit import Kernel, power_of_2, tl
from engine.kernels.packing import TILE_ROWS, Packing

LARGEST_HEAD_DIM = 256


def attention_triton(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, gate: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns softmax(q kᵀ / sqrt(head_dim)) v inside each segment, times sigmoid(gate) if it is given: (tokens,
    heads · head_dim).

    query: (tokens, heads, head_dim); key, value: (tokens, kv_heads, head_dim), kv_heads dividing heads; gate:
    (tokens, heads · head_dim). Rows may be strided, a row's heads lie side by side; head_dim is at most 256.
    """
    tokens, heads, head_dim = query.shape
    assert all(part.stride()[1:] == (head_dim, 1) for part in (query, key, value))
    output = query.new_empty((tokens, heads * head_dim))
    block_dim, block_columns, warps, stages = launch_parameters(head_dim, query.dtype)
    _attention[(len(packing.tiles), heads)](
        query, key, value, output if gate is None else gate, output, packing.tiles,
        query.stride(0), key.stride(0), value.stride(0), 0 if gate is None else gate.stride(0), output.stride(0),
        math.log2(math.e) / math.sqrt(head_dim),
        HEAD_DIM=head_dim, GROUP=heads // key.shape[1], HAS_GATE=gate is not None,
        BLOCK_DIM=block_dim, TILE_ROWS=TILE_ROWS, BLOCK_COLUMNS=block_columns,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return output


def launch_parameters(head_dim: int, dtype: torch.dtype) -> tuple[int, int, int, int]:
    """Returns columns of a head that a program holds, keys of a step, warps, and stages of the pipeline for keys.

    For bfloat16 what an H200 holds without spilling registers (at 256 columns nearly so). float32 products run on its
    plain cores, spill, and are for tests.
    """
    block_dim = max(16, power_of_2(head_dim))
    if dtype == torch.float32:
        return block_dim, 16, 16, 1
    return block_dim, 64 if block_dim <= 128 else 32, 4 if block_dim <= 32 else 8, 3


@Kernel
def _attention(
    query_ptr, key_ptr, value_ptr, gate_ptr, output_ptr, tiles_ptr,
    query_stride, key_stride, value_stride, gate_stride, output_stride, scale,
    HEAD_DIM: tl.constexpr, GROUP: tl.constexpr, HAS_GATE: tl.constexpr,
    BLOCK_DIM: tl.constexpr, TILE_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Attends with one tile of at most TILE_ROWS queries of one head to the keys from its segment's `start` to `stop`,
    BLOCK_COLUMNS at a time. scale: with log2(e)."""
    tile = tiles_ptr + tl.program_id(0) * 3
    first, start, stop = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    head = tl.program_id(1)
    dims = tl.arange(0, BLOCK_DIM)[None, :]
    rows = tl.arange(0, TILE_ROWS)[:, None]
    in_tile = (rows < stop - first) & (dims < HEAD_DIM)
    query_ptr += first.to(tl.int64) * query_stride + head * HEAD_DIM
    query = tl.load(query_ptr + rows * query_stride + dims, mask=in_tile, other=0.0)
    key_ptr += start.to(tl.int64) * key_stride + head // GROUP * HEAD_DIM
    value_ptr += start.to(tl.int64) * value_stride + head // GROUP * HEAD_DIM

    largest = tl.full((TILE_ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((TILE_ROWS,), tl.float32)
    mixed = tl.zeros((TILE_ROWS, BLOCK_DIM), tl.float32)
    # Only the last step can reach past the segment, so that the others need no masks.
    for _ in range(0, (stop - start) // BLOCK_COLUMNS):
        largest, total, mixed = _attend(
            largest, total, mixed, query, key_ptr, value_ptr, key_stride, value_stride, scale, BLOCK_COLUMNS,
            False, HEAD_DIM, BLOCK_DIM, BLOCK_COLUMNS,
        )  # fmt: skip
        key_ptr += BLOCK_COLUMNS * key_stride
        value_ptr += BLOCK_COLUMNS * value_stride
    remaining = (stop - start) % BLOCK_COLUMNS
    if remaining > 0:
        largest, total, mixed = _attend(
            largest, total, mixed, query, key_ptr, value_ptr, key_stride, value_stride, scale, remaining,
            True, HEAD_DIM, BLOCK_DIM, BLOCK_COLUMNS,
        )  # fmt: skip

    mixed = mixed / total[:, None]
    if HAS_GATE:
        gate_ptr += first.to(tl.int64) * gate_stride + head * HEAD_DIM
        gate = tl.load(gate_ptr + rows * gate_stride + dims, mask=in_tile, other=0.0)
        mixed *= tl.sigmoid(gate.to(tl.float32))
    output_ptr += first.to(tl.int64) * output_stride + head * HEAD_DIM
    tl.store(output_ptr + rows * output_stride + dims, mixed.to(output_ptr.dtype.element_ty), mask=in_tile)


@Kernel
def _attend(
    largest, total, mixed, query, key_ptr, value_ptr, key_stride, value_stride, scale, length,
    MASKED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Takes one step of the running softmax, over `length` keys from `key_ptr` on, at most BLOCK_COLUMNS.

    largest, total: (TILE_ROWS,) of the scores so far, mixed: (TILE_ROWS, BLOCK_DIM) of the values, all float32.
    """
    columns = tl.arange(0, BLOCK_COLUMNS)[:, None]
    dims = tl.arange(0, BLOCK_DIM)[None, :]
    if MASKED:
        mask = (columns < length) & (dims < HEAD_DIM)
        key = tl.load(key_ptr + columns * key_stride + dims, mask=mask, other=0.0)
        value = tl.load(value_ptr + columns * value_stride + dims, mask=mask, other=0.0)
    elif HEAD_DIM < BLOCK_DIM:
        key = tl.load(key_ptr + columns * key_stride + dims, mask=dims < HEAD_DIM, other=0.0)
        value = tl.load(value_ptr + columns * value_stride + dims, mask=dims < HEAD_DIM, other=0.0)
    else:
        key = tl.load(key_ptr + columns * key_stride + dims)
        value = tl.load(value_ptr + columns * value_stride + dims)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee")
    if MASKED:
        scores = tl.where(tl.arange(0, BLOCK_COLUMNS)[None, :] < length, scores, float("-inf"))
    new_largest = tl.maximum(largest, tl.max(scores, axis=1) * scale)
    weights = tl.exp2(scores * scale - new_largest[:, None])  # `scale` holds log2(e)
    shrink = tl.exp2(largest - new_largest)
    total = total * shrink + tl.sum(weights, axis=1)
    mixed = tl.dot(weights.to(value.dtype), value, mixed * shrink[:, None], input_precision="ieee")
    return new_largest, total, mixed
