"""The elementwise kernels as the DiT's blocks and the VAE call them, beside the plain PyTorch that they replace.

An operation draws its inputs, runs the engine's function, and knows the reference in any dtype. What a call moves is
counted from its tensors: every input once, every output once, a tensor that is changed in place both ways.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.kernels import references
from engine.config.degrees import PARALLEL_DEGREES
from engine.config.model_config import ModelConfig
from engine.kernels.attention.chunked import chunked_attention
from engine.kernels.fp8 import Fp8Rows
from engine.kernels.gate import sigmoid_mul, silu_mul
from engine.kernels.image_norm import add_image_norm_, add_residual_, image_norm
from engine.kernels.int8 import dequantize_groups, quantize_groups
from engine.kernels.norm import add_rms_norm_modulate_, norm_triton, rms_norm_modulate
from engine.kernels.packing import Packing
from engine.kernels.rope import norm_rotate_, norm_rotate_to_ranks
from engine.kernels.upsample import upsample

Tensors = dict[str, torch.Tensor]

# of a row's program of the norm to fp8, whose 8 leave a multiprocessor room for only two rows at a time
_OTHER_WARPS = (4, 16)


@dataclass(frozen=True)
class Shape:
    """What kernels see of a batch: its rows in segments, one rank's share of a block's heads and of its SwiGLU, and
    the largest picture in the VAE, `side` pixels wide and high."""

    packing: Packing
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    eps: float
    side: int
    channels: int

    @classmethod
    def of(cls, config: ModelConfig, packing: Packing, side: int, tp: int = 1) -> Shape:
        dit = config.transformer
        return cls(
            packing,
            dit.hidden_size,
            dit.num_heads // tp,
            dit.num_kv_heads // tp,
            dit.head_dim,
            dit.intermediate_size // tp,
            dit.norm_eps,
            side,
            config.vae.base_dim,
        )

    @property
    def qkvg_columns(self) -> list[int]:
        heads = (self.heads, self.kv_heads, self.kv_heads, self.heads)
        return [count * self.head_dim for count in heads]

    @property
    def ranks(self) -> int:
        """As many as may share the heads in sequence parallelism."""
        return max(degree for degree in PARALLEL_DEGREES if not (self.heads % degree or self.kv_heads % degree))


@dataclass(frozen=True)
class Operation:
    """One kernel.

    draw: random inputs by name, for a `Random`. run: the engine's function on them; returns the outputs by name, in
    which the inputs that it changed must be. reference: the same from unchanged inputs, in the dtype that it is told.
    """

    name: str
    draw: Callable[[Shape, Random], Tensors]
    run: Callable[[Shape, Tensors], dict[str, torch.Tensor | Fp8Rows]]
    reference: Callable[[Shape, Tensors, torch.dtype], Tensors]
    changes: tuple[str, ...] = ()
    fp8: bool = False


@dataclass(frozen=True)
class Random:
    """Random tensors on a device, other ones in every run."""

    generator: torch.Generator
    dtype: torch.dtype

    @classmethod
    def fresh(cls, device: torch.device, dtype: torch.dtype) -> Random:
        generator = torch.Generator(device)
        generator.seed()
        return cls(generator, dtype)

    def normal(self, *shape: int, dtype: torch.dtype | None = None, mean: float = 0.0) -> torch.Tensor:
        values = torch.randn(shape, generator=self.generator, device=self.generator.device, dtype=dtype or self.dtype)
        return values.add_(mean) if mean else values


def bytes_moved(operation: Operation, inputs: Tensors, outputs: dict[str, torch.Tensor | Fp8Rows]) -> int:
    """Every input read once and every output written once."""
    tensors = list(inputs.values())
    for output in outputs.values():
        tensors += [output.values, output.scales] if isinstance(output, Fp8Rows) else [output]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def elementwise_operations() -> Iterator[Operation]:
    """All of a block, those before a matrix product in both forms of their output, and those of the VAE."""
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
    yield Operation("q, k norm and rotation, v, to ranks", _draw_qkv, _rotate_to_ranks, _rotate_to_ranks_reference)
    yield Operation("int8 weights → bfloat16", _draw_int8, _dequantize, _dequantize_reference)
    yield Operation("VAE: norm, silu", _draw_picture, _image_norm, _image_norm_reference)
    yield Operation("VAE: bias, norm, silu", _draw_biased, _biased_norm, _biased_norm_reference)
    yield Operation("VAE: residual, norm, silu", _draw_pair, _residual_image, _residual_image_reference, ("x",))
    yield Operation("VAE: residual", _draw_pair, _residual_alone, _residual_alone_reference, ("x",))
    yield Operation("VAE: attention", _draw_pixels, _attend_to_pixels, _attend_to_pixels_reference)
    yield Operation("VAE: attention by torch", _draw_pixels, _attend_by_torch, _attend_to_pixels_reference)
    yield Operation("VAE: upsample", _draw_small_picture, _upsample, _upsample_reference)


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


def _rotate(shape: Shape, at: Tensors) -> dict[str, torch.Tensor | Fp8Rows]:
    norm_rotate_(at["query"], at["key"], at["query_norm"], at["key_norm"], shape.eps, at["rotations"])
    return {"query": at["query"], "key": at["key"]}


def _rotate_reference(shape: Shape, at: Tensors, dtype: torch.dtype) -> Tensors:
    return {
        name: references.norm_rotate(at[name], at[f"{name}_norm"], shape.eps, at["rotations"], dtype)
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


def _draw_picture(shape: Shape, random: Random) -> Tensors:
    picture = random.normal(1, shape.side, shape.side, shape.channels).permute(0, 3, 1, 2)
    return {"x": picture, "weight": random.normal(shape.channels, mean=1.0)}


def _image_norm(_: Shape, at: Tensors) -> dict[str, torch.Tensor | Fp8Rows]:
    return {"y": image_norm(at["x"], at["weight"], silu=True)}


def _image_norm_reference(_: Shape, at: Tensors, dtype: torch.dtype) -> Tensors:
    return {"y": references.image_norm(at["x"], at["weight"], dtype, silu=True)}


def _draw_biased(shape: Shape, random: Random) -> Tensors:
    return {**_draw_picture(shape, random), "bias": random.normal(shape.channels)}


def _biased_norm(_: Shape, at: Tensors) -> dict[str, torch.Tensor | Fp8Rows]:
    return {"y": image_norm(at["x"], at["weight"], silu=True, bias=at["bias"])}


def _biased_norm_reference(_: Shape, at: Tensors, dtype: torch.dtype) -> Tensors:
    return {"y": references.image_norm(_biased(at, dtype), at["weight"], dtype, silu=True)}


def _draw_pair(shape: Shape, random: Random) -> Tensors:
    return {**_draw_biased(shape, random), "residual": _draw_picture(shape, random)["x"]}


def _residual_image(_: Shape, at: Tensors) -> dict[str, torch.Tensor | Fp8Rows]:
    y = add_image_norm_(at["x"], at["residual"], at["weight"], silu=True, bias=at["bias"])
    return {"x": at["x"], "y": y}


def _residual_image_reference(_: Shape, at: Tensors, dtype: torch.dtype) -> Tensors:
    x = _biased(at, dtype) + at["residual"].to(dtype)
    return {"x": x, "y": references.image_norm(x, at["weight"], dtype, silu=True)}


def _residual_alone(_: Shape, at: Tensors) -> dict[str, torch.Tensor | Fp8Rows]:
    return {"x": add_residual_(at["x"], at["residual"], bias=at["bias"])}


def _residual_alone_reference(_: Shape, at: Tensors, dtype: torch.dtype) -> Tensors:
    return {"x": _biased(at, dtype) + at["residual"].to(dtype)}


def _biased(at: Tensors, dtype: torch.dtype) -> torch.Tensor:
    return at["x"].to(dtype) + at["bias"].to(dtype).view(-1, 1, 1)


def _draw_pixels(shape: Shape, random: Random) -> Tensors:
    """q, k and v of the decoder's middle: one head of four times the last level's channels."""
    pixels, width = (shape.side // 8) ** 2, 4 * shape.channels
    query, key, value = random.normal(1, pixels, 3 * width).split(width, dim=-1)
    return {"query": query, "key": key, "value": value}


def _attend_to_pixels(shape: Shape, at: Tensors) -> dict[str, torch.Tensor | Fp8Rows]:
    room = shape.side**2 * shape.channels * 4  # as `VAEDecoder.score_bytes`
    return {"y": chunked_attention(at["query"], at["key"], at["value"], room)}


def _attend_by_torch(_: Shape, at: Tensors) -> dict[str, torch.Tensor | Fp8Rows]:
    """What the engine's own is to be faster than."""
    query, key, value = (at[name][:, None] for name in ("query", "key", "value"))
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        return {"y": F.scaled_dot_product_attention(query, key, value)[:, 0]}


def _attend_to_pixels_reference(_: Shape, at: Tensors, dtype: torch.dtype) -> Tensors:
    query, key, value = (part[0, :, None] for part in (at["query"], at["key"], at["value"]))
    return {"y": references.attention(query, key, value, Packing([len(query)], query.device), dtype)[None]}


def _draw_small_picture(shape: Shape, random: Random) -> Tensors:
    half = shape.side // 2
    return {"x": random.normal(1, half, half, 2 * shape.channels).permute(0, 3, 1, 2)}


def _upsample(_: Shape, at: Tensors) -> dict[str, torch.Tensor | Fp8Rows]:
    return {"y": upsample(at["x"])}


def _upsample_reference(_: Shape, at: Tensors, dtype: torch.dtype) -> Tensors:
    return {"y": references.upsample(at["x"], dtype)}
