"""How much memory a step needs, by arithmetic. By it the front-end refuses requests before it dispatches them. Pure.

The figures, all in bytes, follow the tensors that are alive at once in `engine.model` and `engine.kernels` at their
widest point, and are meant to be a little too high. `bytes_per_element` is that of the model's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from engine.config.chat_template import MAX_PROMPT_TOKENS, PREFIX_TOKENS, SUFFIX_TOKENS
from engine.config.degrees import EXCHANGING, Degrees
from engine.config.model_config import ModelConfig
from engine.model.tiles import SMALLEST_TILE, divide, encoder_reach
from engine.planning.work_division import UNEVEN, forward_passes
from engine.step_cache.settings import StepCache

# Tokens in one forward of the text encoder, which bounds what that allocates: one prompt of the greatest length, or
# several short ones.
ENCODE_AT_ONCE = PREFIX_TOKENS + MAX_PROMPT_TOKENS + SUFFIX_TOKENS
_FLOAT32 = 4
# What NCCL takes of a GPU's memory, as others measured it: 688 MB for a communicator of 4 A100s under torch, after an
# all_reduce (github.com/NVIDIA/nccl/issues/964), and 3.28 GB more for the 7 peers of an H100 after the first all_to_all
# (issue 1685, 32 channels to each).
_COMMUNICATOR_BYTES, _PEER_BYTES = 700_000_000, 470_000_000


@dataclass(frozen=True)
class DecodeMemory:
    """What the memory that decoding takes depends on. bytes_per_element: of images between the decoder's layers, which
    may be more than the model's. limit: bytes above which an image is decoded in tiles, as far as these help; None for
    never."""

    bytes_per_element: int
    limit: int | None = None


def communication_bytes(degrees: Degrees) -> int:
    """Add up what NCCL's buffers take on a rank's GPU, for all groups that it is in."""
    return sum(
        _COMMUNICATOR_BYTES + (len(ranks) - 1) * _PEER_BYTES * (not EXCHANGING.isdisjoint(names))
        for ranks, names in degrees.communicators().items()
    )


def step_bytes(config: ModelConfig, tokens: int, tp: int, bytes_per_element: int, *, sp: int = 1) -> int:
    """Add up what one denoise step of `tokens` packed tokens allocates on each of tp · sp ranks."""
    dit = config.transformer
    width, e = dit.hidden_size, bytes_per_element
    query, keys = width // tp, dit.num_kv_heads * dit.head_dim // tp
    feed_forward = dit.intermediate_size // tp
    residual = 2 * width * e + width * (_FLOAT32 + e)  # the stream, the embedded images, its norm in float32, rounded
    # q|k|v|gate; q normed and rotated in float32; the attention's output, its gate in float32, the projection
    attention = (2 * query + 2 * keys) * e + 2 * query * _FLOAT32 + 2 * query * e + query * _FLOAT32 + width * e
    # gate|up; silu in float32 and rounded; the projection
    swiglu = 2 * feed_forward * e + feed_forward * (_FLOAT32 + e) + width * e
    rotations = dit.head_dim * _FLOAT32
    if sp > 1:  # q, k and v as they are sent and received, and attention's output likewise
        attention += 2 * (query + 2 * keys) * e + 2 * query * e
    rows = -(-tokens // sp)
    elsewhere = (tokens - rows) * 2 * width * e  # rows that every rank embeds, and only one of the others keeps
    return tokens * rotations + rows * (residual + max(attention, swiglu)) + elsewhere


def batch_bytes(
    config: ModelConfig, segments: Sequence[int], degrees: Degrees, bytes_per_element: int, *, together: bool = False
) -> int:
    """Add up what one denoise step allocates on the rank that has the most to do. segments: each one's tokens.
    together: as in `forward_passes`."""
    parts, ranks = forward_passes(config.transformer, segments, degrees, together=together)
    most = max(sum(segments[i] for i in part) for part in parts)
    return step_bytes(config, most, degrees.tp, bytes_per_element, sp=ranks)


def packed_bytes(config: ModelConfig, tokens: int, degrees: Degrees, bytes_per_element: int) -> int:
    """Bound `batch_bytes` of any segments that have `tokens` tokens together."""
    tp, sp, cfg = degrees.tp, degrees.sp, degrees.cfg
    if cfg == 1 or config.transformer.undivided_heads(degrees.ranks):
        return step_bytes(config, tokens, tp, bytes_per_element, sp=sp)
    return max(
        step_bytes(config, math.ceil(UNEVEN * tokens / cfg), tp, bytes_per_element, sp=sp),
        step_bytes(config, tokens, tp, bytes_per_element, sp=sp * cfg),
    )


def cache_bytes(
    config: ModelConfig,
    cache: StepCache | None,
    segments: Sequence[int],
    image_tokens: int,
    degrees: Degrees,
    bytes_per_element: int,
    *,
    reuses_difference: bool = False,
) -> int:
    """Add up what each rank holds of an image for steps that are saved, and what its own steps take for that beside
    `step_bytes`. segments: tokens of its halves. reuses_difference: outside its guidance window the last one counts."""
    dit = config.transformer
    velocity = image_tokens * dit.in_channels * _FLOAT32
    size = 2 * velocity * reuses_difference  # one is kept, and another made
    if cache is None:
        return size
    if cache.method == "velocity":  # those that are forecast from, and the next
        return size + len(segments) * (cache.order + 2) * velocity
    # What the first blocks added, and those after them in the last steps, all rows of it; in a step the next of both,
    # the rows before and after the blocks, and, where ranks share rows, those of all of them.
    kept, stepping = 2 + cache.order, 4 + 2 * (degrees.sp * degrees.cfg > 1)
    return size + (kept + stepping) * sum(segments) * dit.hidden_size * bytes_per_element


def decode_bytes(config: ModelConfig, width: int, height: int, bytes_per_element: int, most: int | None = None) -> int:
    """Add up what decoding one image allocates on the rank that does it. width, height: in pixels. bytes_per_element
    and most: as `bytes_per_element` and `limit` of `DecodeMemory`."""
    side = tile_side(config, width, height, bytes_per_element, most)
    if side is not None:
        return tiled_decode_bytes(config, width, height, bytes_per_element, side)
    return _levels_bytes(config, width * height, bytes_per_element) + _picture_bytes(width, height)


def tile_side(config: ModelConfig, width: int, height: int, bytes_per_element: int, most: int | None) -> int | None:
    """Choose the longest side of tiles, in latent pixels, with which decoding an image allocates no more than `most`
    bytes, or as little as it can; None: whole, since that is no more than `most`, or the image is a tile itself."""
    whole = partial(decode_bytes, config, width, height, bytes_per_element)
    tiled = partial(tiled_decode_bytes, config, width, height, bytes_per_element)
    return _largest_fitting(max(width, height) // config.vae.scale_factor, most, whole, tiled)


def tiled_decode_bytes(config: ModelConfig, width: int, height: int, bytes_per_element: int, side: int) -> int:
    """Add up what decoding one image allocates in tiles whose sides are at most `side` latent pixels."""
    vae = config.vae
    scale = vae.scale_factor
    across, down = divide(width // scale, side), divide(height // scale, side)
    latents, channels = width * height // scale**2, vae.base_dim * vae.dim_mult[-1]
    # The middle of the decoder sees the whole picture, and its result is there while there are tiles to make of it. Its
    # scores on a GPU (`VAEDecoder.score_bytes`) take less than the tile does, or than `_picture_bytes`, not yet used.
    middle = latents * channels * (5 * bytes_per_element + _FLOAT32)
    tile = _levels_bytes(config, across.size * down.size * scale**2, bytes_per_element)
    return max(middle, latents * channels * bytes_per_element + tile) + _picture_bytes(width, height)


def _levels_bytes(config: ModelConfig, image_pixels: int, bytes_per_element: int) -> int:
    """The most that a level of the decoder takes for an image, or a tile, of `image_pixels` pixels."""
    vae, e = config.vae, bytes_per_element
    levels = len(vae.dim_mult)
    channels = [vae.base_dim * multiplier for multiplier in reversed(vae.dim_mult)]
    peak, incoming = 0, channels[0]
    for level, outgoing in enumerate(channels):
        pixels = image_pixels // 4 ** (levels - 1 - level)
        # the level's input; a residual block's input, its first convolution, the norm of that, its second convolution;
        # and a float32 image: of the norm on a CPU, at the convolutions' disposal on a GPU
        peak = max(peak, pixels * max(incoming, outgoing) * (5 * e + _FLOAT32))
        if level < levels - 1:
            incoming = outgoing // 2
            peak = max(peak, 4 * pixels * (outgoing + incoming) * e + pixels * outgoing * e)
    return peak


def _picture_bytes(width: int, height: int) -> int:
    return width * height * 3 * 3 * _FLOAT32  # three at once: in [0, 1], times 255, and rounded


def picture_encode_bytes(
    config: ModelConfig, width: int, height: int, bytes_per_element: int, most: int | None = None
) -> int:
    """Add up what encoding one picture allocates on a rank that does it, as `decode_bytes` does for decoding. That may
    be while a step runs and an image is decoded."""
    side = picture_tile_side(config, width, height, bytes_per_element, most)
    return _tiled_encode_bytes(config, width, height, bytes_per_element, side or max(width, height))


def picture_tile_side(
    config: ModelConfig, width: int, height: int, bytes_per_element: int, most: int | None
) -> int | None:
    """Choose the tiles in which a picture is encoded, as `tile_side` does those in which an image is decoded."""
    whole = partial(picture_encode_bytes, config, width, height, bytes_per_element)
    tiled = partial(_tiled_encode_bytes, config, width, height, bytes_per_element)
    return _largest_fitting(max(width, height) // config.vae.scale_factor, most, whole, tiled)


def _tiled_encode_bytes(config: ModelConfig, width: int, height: int, bytes_per_element: int, side: int) -> int:
    vae, e = config.vae, bytes_per_element
    scale, overlap = vae.scale_factor, 2 * encoder_reach(vae)
    latents, channels = width * height // scale**2, vae.base_dim * vae.dim_mult[-1]
    across, down = divide(width // scale, side, overlap), divide(height // scale, side, overlap)
    tile = across.size * down.size * scale**2  # its pixels
    # the way down: what is done of its result, a tile's pixels as they are and channels_last, and its levels
    way_down = latents * channels * e + tile * 3 * 2 * e
    incoming = vae.base_dim
    levels = 0
    for level, multiplier in enumerate(vae.dim_mult):  # as in `_levels_bytes`; what halves an image takes less
        outgoing = vae.base_dim * multiplier
        levels = max(levels, tile // 4**level * max(incoming, outgoing) * (5 * e + _FLOAT32))
        incoming = outgoing
    middle = latents * channels * (5 * e + _FLOAT32) + tile * vae.base_dim * _FLOAT32  # `VAEEncoder.score_bytes`
    return width * height * 3 * (1 + _FLOAT32) + max(way_down + levels, middle)  # the picture's bytes, and in [-1, 1]


def _largest_fitting(
    longest: int, most: int | None, whole: Callable[[], int], tiled: Callable[[int], int]
) -> int | None:
    """The longest side of tiles that take no more than `most` bytes, or the smallest one, of a picture with a side of
    `longest`; None: whole. whole, tiled: tell what that takes, and what tiles of a side do."""
    if most is None or longest <= SMALLEST_TILE or whole() <= most:
        return None
    return next((side for side in range(longest - 1, SMALLEST_TILE, -1) if tiled(side) <= most), SMALLEST_TILE)


def encode_bytes(config: ModelConfig, tp: int, bytes_per_element: int) -> int:
    """Add up what encoding `ENCODE_AT_ONCE` tokens of prompts allocates on each of `tp` ranks."""
    dit, text, e = config.transformer, config.text_encoder, bytes_per_element
    tokens, width = ENCODE_AT_ONCE, dit.text_hidden_size
    # the hidden states, the stack of the tapped ones with and without the prefix
    states = tokens * width * (config.text_layers + 1 + 2 * dit.num_text_layers) * e
    rows = tokens * dit.num_text_layers  # of the layer-wise blocks
    attention = 4 * width // tp * (2 * e + _FLOAT32) + width * e
    swiglu = dit.text_intermediate_size // tp * (3 * e + _FLOAT32) + width * e
    blocks = rows * (2 * width * e + width * _FLOAT32 + max(attention, swiglu))
    encoder = tokens * (text.intermediate_size * (3 * e + _FLOAT32) + 3 * width * e)  # whose matrices may be whole
    return states + max(blocks, encoder)
