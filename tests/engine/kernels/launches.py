"""Launches kernels on a GPU that is not there: `python -m tests.engine.kernels.launches` prints a JSON line a round.

Everything happens that happens at a launch, up to the compiler's result: what a running server would stop to compile
at a size that it has not met shows here. In a process of its own, as `hopper.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from unittest.mock import patch

import torch

from bench.engines.real_size import KREA2
from engine.kernels import gate, image_norm, norm, rope, upsample
from engine.kernels.attention import (
    chunked as chunked_attention,
)
from engine.kernels.attention import (
    fa3_fp8 as fp8_attention,
)
from engine.kernels.attention import (
    triton_kernel as attention_triton,
)
from engine.kernels.fp8 import empty_rows
from engine.kernels.jit import Kernel
from engine.kernels.packing import CapturedPacking, Packing

CPU = torch.device("cpu")
DIT, TEXT = KREA2.transformer, KREA2.text_encoder
# a captured packing first; then lengths odd and even, of one token, and more segments than before
STEPS = (None, (40,), (41,), (16,), (1,), (33, 20), (5, 6, 7, 8, 9, 10, 11, 12, 13))
PROMPTS = (64, 7, 1)  # tokens
IMAGES = ((16, 16), (13, 11), (1, 3))  # pixels


def main() -> int:
    _pretend_a_gpu()
    for lengths in STEPS:
        packing = CapturedPacking(128, 9, CPU) if lengths is None else Packing(lengths, CPU)
        for fp8 in (False, True):
            _step(packing, fp8=fp8)
        _report("step", lengths)
    for tokens in PROMPTS:
        _prompt(tokens)
        _report("prompt", (tokens,))
    for height, width in IMAGES:
        _image(height, width)
        _report("image", (height, width))
    return 0


def _pretend_a_gpu() -> None:
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Driver:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    def compile_only(self: Kernel, grid: tuple[int, ...]) -> object:
        return partial(self.compiled.warmup, grid=grid, enable_fp_fusion=True)

    driver.set_active(Driver())
    Kernel.__getitem__ = compile_only  # type: ignore[method-assign]


def _step(packing: Packing, *, fp8: bool) -> None:
    tokens, segments = packing.tokens, packing.segments
    x = torch.zeros((tokens, DIT.hidden_size), dtype=torch.bfloat16)
    table = torch.zeros((6, DIT.hidden_size))
    modulation = torch.zeros((segments, 6 * DIT.hidden_size)).unflatten(-1, (6, -1))
    factor, shift, update_gate, *_ = torch.addcmul(table, table, modulation).unbind(1)
    norm.norm_triton(x, factor, 1e-5, shift=shift, packing=packing, fp8=fp8)
    norm.norm_triton(x, factor, 1e-5, update=x, total=x, gate=update_gate, shift=shift, packing=packing, fp8=fp8)
    query, key, value, output_gate = _heads(tokens, DIT.num_heads, DIT.num_kv_heads, DIT.head_dim, gated=True)
    rotations = torch.zeros((tokens, DIT.head_dim // 2), dtype=torch.complex64)
    weight = torch.ones(DIT.head_dim)
    rope.norm_rotate_triton_(query, key, weight, weight, 1e-5, rotations, halves=False)
    of_segments = torch.ones((segments, DIT.head_dim))  # where LoRAs change one of them
    rope.norm_rotate_triton_(query, key, of_segments, weight, 1e-5, rotations, packing=packing)
    for ranks in (2, 4):
        rope.norm_rotate_to_ranks_triton(query, key, value, weight, weight, 1e-5, rotations, ranks)
        rope.norm_rotate_to_ranks_triton(
            query, key, value, weight, of_segments, 1e-5, rotations, ranks, packing=packing
        )
        parts = torch.zeros((ranks, tokens, DIT.hidden_size // ranks), dtype=torch.bfloat16)
        gate.gate_mul_triton(parts.transpose(0, 1), output_gate.flatten(1), silu=False, fp8=fp8)
    attention_triton.attention_triton(query, key, value, packing, None if fp8 else output_gate.flatten(1))
    gate.gate_mul_triton(x, output_gate.flatten(1), silu=False, fp8=fp8)
    if not packing.captured:  # each segment's rows of a result, wherever these begin
        rows = empty_rows(tokens, DIT.hidden_size, x, fp8=fp8)
        for start, stop in pairwise(packing.bounds):
            attended, of_rows = torch.zeros_like(x[start:stop]), output_gate[start:stop].flatten(1)
            gate.gate_mul_triton(attended, of_rows, silu=False, fp8=fp8, out=rows, first=start)
    fp8_attention.quantize_heads_triton(query, key, value, packing)
    _swiglu(tokens, DIT.intermediate_size, fp8=fp8)


def _prompt(tokens: int) -> None:
    x = torch.zeros((tokens, TEXT.hidden_size), dtype=torch.bfloat16)
    norm.norm_triton(x, torch.ones(TEXT.hidden_size), 1e-6)
    norm.norm_triton(x, torch.ones(TEXT.hidden_size), 1e-6, update=x, total=torch.empty_like(x))
    query, key, *_ = _heads(tokens, TEXT.num_heads, TEXT.num_kv_heads, TEXT.head_dim, gated=False)
    weight = torch.ones(TEXT.head_dim)
    rotations = rope.text_rotations(torch.arange(tokens), TEXT.head_dim, TEXT.rope_theta)
    rope.norm_rotate_triton_(query, key, weight, weight, 1e-6, rotations, halves=True)
    _swiglu(tokens, TEXT.intermediate_size, fp8=False)
    rows = tokens * DIT.num_text_layers
    query, key, _, output_gate = _heads(rows, DIT.text_num_heads, DIT.text_num_kv_heads, DIT.text_head_dim, gated=True)
    weight = torch.ones(DIT.text_head_dim)
    rope.norm_rotate_triton_(query, key, weight, weight, 1e-5, None, halves=False)
    gate.gate_mul_triton(query.flatten(1), output_gate.flatten(1), silu=False, fp8=False)
    _swiglu(rows, DIT.text_intermediate_size, fp8=False)


def _image(height: int, width: int) -> None:
    for multiplier in set(KREA2.vae.dim_mult):
        channels = KREA2.vae.base_dim * multiplier
        x = torch.zeros((1, channels, height, width), dtype=torch.bfloat16)
        x = x.contiguous(memory_format=torch.channels_last)
        vector = torch.ones(channels, dtype=torch.bfloat16)
        for silu in (False, True):
            for bias in (None, vector):
                image_norm.image_norm_triton(x, vector, silu=silu, bias=bias)
        image_norm.add_image_norm_triton_(x, x, vector, silu=True, bias=vector)
        image_norm.add_residual_triton_(x, x, bias=vector)
        upsample.upsample_triton(x)
    # as of a rank's rows, which may be a number of any kind
    query, key = torch.zeros((1, height, 384), dtype=torch.bfloat16), torch.zeros((1, height * width, 384))
    with patch.object(chunked_attention, "weigh", chunked_attention.weigh_triton):
        chunked_attention.chunked_attention(query, key.bfloat16(), key.bfloat16(), 10**8)


def _heads(tokens: int, heads: int, kv_heads: int, head_dim: int, *, gated: bool) -> list[torch.Tensor]:
    """q, k, v and perhaps the gate, (tokens, heads, head_dim) views of one matrix."""
    columns = [count * head_dim for count in (heads, kv_heads, kv_heads, *([heads] if gated else []))]
    packed = torch.zeros((tokens, sum(columns)), dtype=torch.bfloat16)
    return [part.unflatten(-1, (-1, head_dim)) for part in packed.split(columns, dim=-1)]


def _swiglu(rows: int, width: int, *, fp8: bool) -> None:
    gated, up = torch.zeros((rows, 2 * width), dtype=torch.bfloat16).chunk(2, dim=-1)
    gate.gate_mul_triton(up, gated, silu=True, fp8=fp8)


def _report(kind: str, size: Sequence[int] | None) -> None:
    modules = (norm, gate, rope, image_norm, upsample, attention_triton, chunked_attention, fp8_attention)
    kernels = [kernel for module in modules for kernel in vars(module).values() if isinstance(kernel, Kernel)]
    compiled = sum(len(caches[0]) for kernel in kernels for caches in kernel.compiled.device_caches.values())
    print(json.dumps({"kind": kind, "size": size, "compiled": compiled}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
