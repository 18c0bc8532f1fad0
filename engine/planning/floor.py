"""The least time that work can take, from its arithmetic and its bytes. Plain Python.

Of a denoise step count the matrix products of the DiT's blocks and attention, at the rates that the device was measured
to reach, or the reading of the blocks' weights, whichever takes longer; of text encoding the same of its layers without
attention; of decoding its convolutions. Everything else is left out: what is measured is never below its floor, unless
a ceiling was measured too low.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from engine.config.components import TextEncoderConfig, TransformerConfig, VAEConfig


@dataclass(frozen=True)
class Ceilings:
    """What a device reaches: FLOP/s of a large matrix product in the model's dtype and in fp8, FLOP/s of attention, and
    bytes/s of a copy. None: not measured, and the matrix product's stands in."""

    matmul_flops: float
    fp8_flops: float | None
    attention_flops: float | None
    copy_bytes: float

    def __str__(self) -> str:
        rates = (
            ("a matrix product", self.matmul_flops),
            ("the same in fp8", self.fp8_flops),
            ("attention", self.attention_flops),
        )
        known = [f"{rate / 1e12:.3g} TFLOP/s in {what}" for what, rate in rates if rate is not None]
        return ", ".join([*known, f"{self.copy_bytes / 1e9:.3g} GB/s in a copy"])

    @property
    def attention_source(self) -> str:
        """Which ceiling the floor's attention is reckoned at."""
        return "matmul" if self.attention_flops is None else "attention"


@dataclass(frozen=True)
class Floor:
    """Of a denoise step: seconds of its parts, and its FLOP. `seconds` is the least that it can take."""

    matmul_s: float
    attention_s: float
    weights_s: float
    flops: float

    @property
    def seconds(self) -> float:
        return max(self.matmul_s + self.attention_s, self.weights_s)

    @property
    def bound(self) -> str:
        """What the floor is made of: "flops" or "bytes"."""
        return "flops" if self.seconds > self.weights_s else "bytes"


def step_floor(
    config: TransformerConfig,
    segments: Iterable[int],
    ceilings: Ceilings,
    *,
    fp8: bool,
    bytes_per_element: int,
    steps: int = 1,
) -> Floor:
    """The floor of `steps` denoise steps of packed segments of these lengths in tokens, of a model whose block matrices
    are in fp8, or have elements of `bytes_per_element`."""
    lengths = tuple(segments)
    matmul, attention = matmul_flops(config, sum(lengths)) * steps, attention_flops(config, lengths) * steps
    matmul_rate = (ceilings.fp8_flops if fp8 else None) or ceilings.matmul_flops
    weights = block_parameters(config) * (1 if fp8 else bytes_per_element) * steps
    return Floor(
        matmul / matmul_rate,
        attention / (ceilings.attention_flops or ceilings.matmul_flops),
        weights / ceilings.copy_bytes,
        matmul + attention,
    )


def block_parameters(config: TransformerConfig) -> int:
    """Elements of the matrices of all DiT blocks: q, k, v, gate and out; gate, up and down."""
    width, keys = config.hidden_size, config.num_kv_heads * config.head_dim
    return config.num_layers * width * (3 * width + 2 * keys + 3 * config.intermediate_size)


def matmul_flops(config: TransformerConfig, tokens: int) -> float:
    """Of the matrix products of all blocks in one step."""
    return 2.0 * block_parameters(config) * tokens


def attention_flops(config: TransformerConfig, segments: Iterable[int]) -> float:
    """Of both products of attention in all blocks in one step. Grouped keys save bytes, not FLOP."""
    return attention_flops_of_pairs(config, sum(length * length for length in segments))


def attention_flops_of_pairs(config: TransformerConfig, pairs: int) -> float:
    """The same, from how many pairs of tokens attend to each other."""
    return 4.0 * config.hidden_size * config.num_layers * pairs


def text_encoder_parameters(config: TextEncoderConfig, layers: int) -> int:
    """Elements of the matrices of the text encoder's first layers."""
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return layers * config.hidden_size * (2 * queries + 2 * keys + 3 * config.intermediate_size)


def decode_flops(config: VAEConfig, width: int, height: int) -> float:
    """Of the VAE decoder's convolutions, computed as they are written, and of the attention in its middle, for an image
    of width × height pixels."""
    pixels = (width // config.scale_factor) * (height // config.scale_factor)
    widths = [config.base_dim * multiplier for multiplier in reversed(config.dim_mult)]
    incoming = widths[0]
    weights = config.z_dim**2 + 9 * config.z_dim * incoming + _residual(incoming, incoming) * 2 + 4 * incoming**2
    total = pixels * weights + 2 * pixels**2 * incoming
    for level, outgoing in enumerate(widths):
        weights = _residual(incoming, outgoing) + config.num_res_blocks * _residual(outgoing, outgoing)
        total += pixels * weights
        if level < len(widths) - 1:
            pixels *= 4
            total += pixels * 9 * outgoing * (outgoing // 2)
            incoming = outgoing // 2
    return 2.0 * (total + pixels * 9 * widths[-1] * 3)


def encode_flops(config: VAEConfig, width: int, height: int) -> float:
    """Of the VAE encoder, as `decode_flops` of the decoder, for a picture of width × height pixels."""
    pixels, incoming = width * height, config.base_dim
    total = pixels * 9 * 3 * incoming
    for level, multiplier in enumerate(config.dim_mult):
        outgoing = config.base_dim * multiplier
        weights = _residual(incoming, outgoing) + (config.num_res_blocks - 1) * _residual(outgoing, outgoing)
        total += pixels * weights
        if level < len(config.dim_mult) - 1:
            pixels //= 4
            total += pixels * 9 * outgoing**2
        incoming = outgoing
    latent = 2 * config.z_dim
    weights = _residual(incoming, incoming) * 2 + 4 * incoming**2 + 9 * incoming * latent + latent**2
    return 2.0 * (total + pixels * weights + 2 * pixels**2 * incoming)


def _residual(incoming: int, outgoing: int) -> int:
    """Elements of the convolutions of a residual block."""
    shortcut = incoming * outgoing if incoming != outgoing else 0
    return 9 * incoming * outgoing + 9 * outgoing**2 + shortcut
