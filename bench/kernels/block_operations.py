"""The elementwise kernels as the DiT's blocks call them, beside the plain PyTorch that they replace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from bench.kernels import references
from bench.kernels.cases import Operation, Random, Shape, Tensors
from engine.kernels.fp8 import Fp8Rows
from engine.kernels.gate import sigmoid_mul, silu_mul
from engine.kernels.int8 import dequantize_groups, quantize_groups
from engine.kernels.norm import add_rms_norm_modulate_, norm_triton, rms_norm_modulate
from engine.kernels.rope import norm_rotate_, norm_rotate_to_ranks

# of a row's program of the norm to fp8, whose 8 leave a multiprocessor room for only two rows at a time
_OTHER_WARPS = (4, 16)


def block_operations() -> Iterator[Operation]:
    """All of a block, those before a matrix product in both forms of their output."""
    for fp8 in (False, True):
        suffix = " → fp8" if fp8 else ""
        yield Operation(f"norm, modulate{suffix}", _draw_norm, _norm(fp8), _norm_reference, fp8=fp8)
        yield Operation(
            f"residual, norm, modulate{suffix}", _draw_residual, _residual(fp8), _residual_reference, ("x",), fp8
        )
        yield Operation(f"sigmoid(gate) · x{suffix}", _draw_sigmoid, _sigmoid(fp8), _sigmoid_reference, fp8=fp8)
        name = f"sigmoid(gate) · x of ranks{suffix}"
        yield Operation(name, _draw_sigmoid_of_ranks, _sigmoid(fp8), _sigmoid_of_ranks_reference, fp8=fp8)
        yield Operation(f"silu(gate) · up{suffix}", _draw_silu, _silu(fp8), _silu_reference, fp8=fp8)
    for warps in _OTHER_WARPS:
        name = f"residual, norm, modulate → fp8, {warps} warps"
        yield Operation(name, _draw_residual, _residual(True, warps), _residual_reference, ("x",), True)
    yield Operation("q, k norm and rotation", _draw_heads, _rotate, _rotate_reference, ("query", "key"))
    yield Operation(
        "q, k norm by segment and rotation", _draw_heads_by_segment, _rotate, _rotate_reference, ("query", "key")
    )
    yield Operation("q, k norm and rotation, v, to ranks", _draw_qkv, _rotate_to_ranks, _rotate_to_ranks_reference)
    yield Operation("int8 weights → bfloat16", _draw_int8, _dequantize, _dequantize_reference)


def _vectors(shape: Shape, random: Random, mean: float = 0.0) -> torch.Tensor:
    return random.normal(shape.packing.segments, shape.width, dtype=torch.float32, mean=mean)


def _draw_norm(shape: Shape, random: Random) -> Tensors:
    x = random.normal(shape.packing.tokens, shape.width)
    return {"x": x, "factor": _vectors(shape, random, 1.0), "shift": _vectors(shape, random)}


def _norm(fp8: bool) -> Callable[[Shape, Tensors], dict[str, torch.Tensor | Fp8Rows]]:
    def run(shape: Shape, at: Tensors) -> dict[str, torch.Tensor | Fp8Rows]:
        return {"y": rms_norm_modulate(at["x"], at["factor"], at["shift"], shape.eps, shape.packing, fp8=fp8)}

    return run


def _norm_reference(shape: Shape, at: Tensors, dtype: torch.dtype) -> Tensors:
    return {"y": references.rms_norm_modulate(at["x"], at["factor"], at["shift"], shape.eps, shape.packing, dtype)}


def _draw_residual(shape: Shape, random: Random) -> Tensors:
    update = random.normal(shape.packing.tokens, shape.width)
    return {"update": update, "gate": _vectors(shape, random), **_draw_norm(shape, random)}


def _residual(fp8: bool, warps: int | None = None) -> Callable[[Shape, Tensors], dict[str, torch.Tensor | Fp8Rows]]:
    """warps: as `norm_triton` has them, where the kernel runs."""

    def run(shape: Shape, at: Tensors) -> dict[str, torch.Tensor | Fp8Rows]:
        x, packing, eps = at["x"], shape.packing, shape.eps
        update, gate, factor, shift = (at[name] for name in ("update", "gate", "factor", "shift"))
        if warps is None or not x.is_cuda:
            y = add_rms_norm_modulate_(x, update, gate, factor, shift, eps, packing, fp8=fp8)
        else:
            y = norm_triton(
                x, factor, eps, update=update, total=x, gate=gate, shift=shift, packing=packing, fp8=fp8, warps=warps
            )
        return {"x": x, "y": y}

    return run


def _residual_reference(shape: Shape, at: Tensors, dtype: torch.dtype) -> Tensors:
    x = references.add_gated(at["x"], at["update"], at["gate"], shape.packing, dtype)
    y = references.rms_norm_modulate(x, at["factor"], at["shift"], shape.eps, shape.packing, dtype)
    return {"x": x, "y": y}


def _packed(shape: Shape, random: Random) -> list[torch.Tensor]:
    """q, k, v and gate as they come from their matrix product: views of one tensor."""
    matrix = random.normal(shape.packing.tokens, sum(shape.qkvg_columns))
    return list(matrix.split(shape.qkvg_columns, dim=1))


def _draw_sigmoid(shape: Shape, random: Random) -> Tensors:
    *_, gate = _packed(shape, random)
    return {"x": random.normal(*gate.shape), "gate": gate}


def _sigmoid(fp8: bool) -> Callable[[Shape, Tensors], dict[str, torch.Tensor | Fp8Rows]]:
    return lambda _, at: {"y": sigmoid_mul(at["x"], at["gate"], fp8=fp8)}


def _sigmoid_reference(_: Shape, at: Tensors, dtype: torch.dtype) -> Tensors:
    return {"y": references.sigmoid_mul(at["x"], at["gate"], dtype)}


def _draw_sigmoid_of_ranks(shape: Shape, random: Random) -> Tensors:
    at = _draw_sigmoid(shape, random)
    tokens, width = at["x"].shape
    return {**at, "x": random.normal(shape.ranks, tokens, width // shape.ranks).transpose(0, 1)}


def _sigmoid_of_ranks_reference(_: Shape, at: Tensors, dtype: torch.dtype) -> Tensors:
    return {"y": references.sigmoid_mul(at["x"].flatten(1), at["gate"], dtype)}


def _draw_silu(shape: Shape, random: Random) -> Tensors:
    return {"gate_up": random.normal(shape.packing.tokens, 2 * shape.intermediate)}


def _silu(fp8: bool) -> Callable[[Shape, Tensors], dict[str, torch.Tensor | Fp8Rows]]:
    return lambda _, at: {"y": silu_mul(at["gate_up"], fp8=fp8)}


def _silu_reference(_: Shape, at: Tensors, dtype: torch.dtype) -> Tensors:
    return {"y": references.silu_mul(at["gate_up"], dtype)}


def _draw_heads(shape: Shape, random: Random) -> Tensors:
    heads = _draw_qkv(shape, random)
    del heads["value"]
    return heads


def _draw_qkv(shape: Shape, random: Random) -> Tensors:
    query, key, value, _ = (part.unflatten(1, (-1, shape.head_dim)) for part in _packed(shape, random))
    angles = random.normal(shape.packing.tokens, shape.head_dim // 2, dtype=torch.float32) * math.pi
    return {
        "query": query,
        "key": key,
        "value": value,
        "query_norm": random.normal(shape.head_dim, dtype=torch.float32, mean=1.0),
        "key_norm": random.normal(shape.head_dim, dtype=torch.float32, mean=1.0),
        "rotations": torch.polar(torch.ones_like(angles), angles),
    }


def _draw_heads_by_segment(shape: Shape, random: Random) -> Tensors:
    """As where LoRAs of some requests change the norms."""
    sizes = shape.packing.segments, shape.head_dim
    norms = {f"{name}_norm": random.normal(*sizes, dtype=torch.float32, mean=1.0) for name in ("query", "key")}
    return _draw_heads(shape, random) | norms


def _rotate(shape: Shape, at: Tensors) -> dict[str, torch.Tensor | Fp8Rows]:
    norms = at["query_norm"], at["key_norm"]
    norm_rotate_(at["query"], at["key"], *norms, shape.eps, at["rotations"], packing=shape.packing)
    return {"query": at["query"], "key": at["key"]}


def _rotate_reference(shape: Shape, at: Tensors, dtype: torch.dtype) -> Tensors:
    return {
        name: references.norm_rotate(at[name], at[f"{name}_norm"], shape.eps, at["rotations"], dtype, shape.packing)
        for name in ("query", "key")
    }


def _rotate_to_ranks(shape: Shape, at: Tensors) -> dict[str, torch.Tensor | Fp8Rows]:
    heads, norms = (at["query"], at["key"], at["value"]), (at["query_norm"], at["key_norm"])
    return {"sent": norm_rotate_to_ranks(*heads, *norms, shape.eps, at["rotations"], shape.ranks)}


def _rotate_to_ranks_reference(shape: Shape, at: Tensors, dtype: torch.dtype) -> Tensors:
    heads = {**_rotate_reference(shape, at, dtype), "value": at["value"].to(dtype)}
    parts = [heads[name].unflatten(1, (shape.ranks, -1)).transpose(0, 1) for name in ("query", "key", "value")]
    return {"sent": torch.cat(parts, dim=2).flatten(2)}


def _draw_int8(shape: Shape, random: Random) -> Tensors:
    values, scales = quantize_groups(random.normal(2 * shape.intermediate, shape.width))
    return {"values": values, "scales": scales}


def _dequantize(_: Shape, at: Tensors) -> dict[str, torch.Tensor | Fp8Rows]:
    return {"y": dequantize_groups(at["values"], at["scales"], torch.bfloat16)}


def _dequantize_reference(_: Shape, at: Tensors, dtype: torch.dtype) -> Tensors:
    return {"y": references.dequantize_groups(at["values"], at["scales"], dtype)}
