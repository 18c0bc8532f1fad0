"""The VAE's encoder in two dimensions against diffusers' in three; tiles and ranks give what the whole gives."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from hypothesis import given
from hypothesis import strategies as st

from bench.engines.real_size import TINY, RandomWeights
from engine.checkpoint.convert.config_json import config_files
from engine.checkpoint.load import LoadOptions, load_weights
from engine.config.components import VAE_ENCODER
from engine.model.tiles import SMALLEST_TILE, divide_exactly
from engine.model.vae_encoder import VAEEncoder
from engine.parallel.group import Group
from tests.cpu_kinds import pretend
from tests.engine.parallel.thread_group import thread_groups
from tests.oracle import relative_error

TOLERANCE = 1e-5
REAL_PROPORTIONS: dict[str, Any] = {"dim_mult": (1, 2, 4, 4), "num_res_blocks": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "flat": {},
    "the demo's proportions": {"dim_mult": (1, 2, 4, 4), "num_res_blocks": 1},
    "real proportions": REAL_PROPORTIONS,
    "wide": {"base_dim": 12, "dim_mult": (2, 1, 3, 2), "num_res_blocks": 3},
    "three levels": {"dim_mult": (1, 2, 4), "num_res_blocks": 2},
}


def random_weights(fields: dict[str, Any], seed: int = 0) -> RandomWeights:
    return RandomWeights(replace(TINY, vae=replace(TINY.vae, **fields)), torch.device("cpu"), seed)


def encoder_of(weights: RandomWeights, device: str = "cpu", dtype: torch.dtype = torch.float32) -> VAEEncoder:
    with torch.device("meta"):
        encoder = VAEEncoder(weights.config.vae)
    options = LoadOptions(torch.device(device), dtype)
    load_weights(encoder, weights, VAE_ENCODER, rank=0, size=1, options=options)
    return encoder


def theirs(weights: RandomWeights, pixels: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What diffusers makes of pixels with the same weights, normalised as its pipelines do for Qwen-Image."""
    vae = AutoencoderKLQwenImage.from_config(config_files(weights.config)["vae/config.json"])
    for name, parameter in vae.named_parameters():
        parameter.data = weights.draw("vae", name, tuple(parameter.shape)).to(dtype)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std))
    with torch.inference_mode():
        return (vae.eval().encode(pixels.to(dtype)[:, :, None]).latent_dist.mode()[:, :, 0].float() - mean) / std


def random_pixels(vae: VAEEncoder, images: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Height and width are in latent pixels."""
    shape = images, 3, height * vae.scale_factor, width * vae.scale_factor
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def encode(vae: VAEEncoder, pixels: torch.Tensor, **options: Any) -> torch.Tensor:
    with torch.inference_mode():
        return vae(pixels, **options)


def encode_together(vae: VAEEncoder, pixels: torch.Tensor, ranks: int, **options: Any) -> list[torch.Tensor]:
    """What each rank has of the latents."""

    def run(group: Group) -> torch.Tensor:
        try:
            return encode(vae, pixels, group=group, **options)
        except BaseException:
            group.close()
            raise

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(run, thread_groups(ranks, spoils=True)))


@pytest.mark.parametrize("shape", SHAPES)
def test_latents_equal_diffusers_mode(shape: str) -> None:
    seed = random.randrange(2**32)
    source = random.Random(seed)
    weights = random_weights(SHAPES[shape], seed)
    vae = encoder_of(weights)
    for height, width in ((1, 3), (source.randint(2, 16), source.randint(2, 16))):
        pixels = random_pixels(vae, source.randint(1, 2), height, width, seed)
        expected, ours = theirs(weights, pixels), encode(vae, pixels)
        assert expected.std() > 0.1
        assert (ours.dtype, ours.is_contiguous()) == (torch.float32, True)
        assert relative_error(ours, expected) <= TOLERANCE, f"seed {seed}, {height} × {width}"


@pytest.mark.parametrize("shape", ["flat", "real proportions", "three levels"])
def test_tiles_and_ranks_give_what_the_whole_gives(shape: str) -> None:
    vae = encoder_of(random_weights({"base_dim": 4, **SHAPES[shape]}))
    reach = vae.encoder.reach
    height = 2 * reach + SMALLEST_TILE
    pixels = random_pixels(vae, 2, height, 3)
    whole = encode(vae, pixels)
    assert len(divide_exactly(slice(0, height), height, reach, SMALLEST_TILE)) >= 2
    torch.testing.assert_close(encode(vae, pixels, tile=SMALLEST_TILE), whole, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(
        encode(vae, pixels.mT, tile=1), encode(vae, pixels.mT.contiguous()), atol=TOLERANCE, rtol=0
    )
    for ranks in (2, 4):
        assert vae.divides(height, thread_groups(ranks)[0])
        for latents in encode_together(vae, pixels, ranks):
            torch.testing.assert_close(latents, whole, atol=TOLERANCE, rtol=0)
    assert not vae.divides(reach, thread_groups(2)[0])


def test_ranks_may_encode_their_rows_in_tiles() -> None:
    vae = encoder_of(random_weights({"base_dim": 2, "num_res_blocks": 1}))
    pixels = random_pixels(vae, 1, 130, 3)
    whole = encode(vae, pixels)
    for latents in encode_together(vae, pixels, 2, tile=SMALLEST_TILE):
        torch.testing.assert_close(latents, whole, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("fields", "reach"), [(REAL_PROPORTIONS, 9), ({"num_res_blocks": 1}, 5), (SHAPES["three levels"], 8)]
)
def test_the_reach_is_what_the_convolutions_have_and_no_more(fields: dict[str, Any], reach: int) -> None:
    """72 pixels for the real VAE. What is further away changes nothing, and what is as far does."""
    vae = encoder_of(random_weights({"base_dim": 4, **fields}))
    assert vae.encoder.reach == reach
    pixels = random_pixels(vae, 1, 1, 4 * reach + 1)
    middle, scale = 2 * reach, vae.scale_factor
    with torch.inference_mode():
        before = vae.encoder.down(pixels)[..., middle]
        for away, changes in ((reach, True), (reach + 1, False)):
            changed = pixels.clone()
            for place in (middle - away, middle + away):
                changed[..., place * scale : (place + 1) * scale] += 1.0
            assert bool((vae.encoder.down(changed)[..., middle] != before).any()) is changes


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 20), st.none() | st.integers(1, 320), st.data())
def test_parts_keep_all_that_is_own_and_see_around_it(
    first: int, last: int, reach: int, longest: int | None, data: st.DataObject
) -> None:
    first, last = sorted((first, last))
    own, length = slice(first - 1, last), last + data.draw(st.integers(0, 50))
    parts = divide_exactly(own, length, reach, longest)
    assert parts[0].kept.start == own.start
    assert parts[-1].kept.stop == own.stop
    assert all(one.kept.stop == other.kept.start for one, other in pairwise(parts))
    sizes = {part.seen.stop - part.seen.start for part in parts}
    assert len(sizes) == 1  # so that cuDNN's choices for one are those for all
    assert longest is None or max(sizes) <= max(longest, SMALLEST_TILE, 4 * reach)
    for seen, kept in parts:
        assert kept.start < kept.stop
        assert 0 <= seen.start <= max(0, kept.start - reach)
        assert min(length, kept.stop + reach) <= seen.stop <= length


def test_bfloat16_encodes_as_closely_as_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU with bfloat16, and on one without it."""
    weights = random_weights(REAL_PROPORTIONS)
    rounded = random_weights(REAL_PROPORTIONS)
    draw = rounded.draw
    rounded.draw = lambda *what: draw(*what).bfloat16().float()  # type: ignore[method-assign]
    pixels = random_pixels(encoder_of(weights), 1, 6, 6).bfloat16().float()
    exact = theirs(rounded, pixels)
    their_error = (theirs(weights, pixels, torch.bfloat16) - exact).abs().mean()
    for native in (False, True):
        pretend(monkeypatch, native_bfloat16=native)
        ours = encode(encoder_of(weights, dtype=torch.bfloat16), pixels)
        assert ours.dtype == torch.float32
        assert (ours - exact).abs().mean() <= 1.1 * their_error


@pytest.mark.parametrize("options", [{}, {"tile": SMALLEST_TILE}])
def test_images_are_channels_last_between_all_convolutions(options: dict[str, Any]) -> None:
    vae = encoder_of(random_weights({"base_dim": 2, "dim_mult": (1, 2, 4, 4)}))
    convolutions = [module for module in vae.modules() if getattr(module, "weight", torch.empty(0)).dim() == 4]
    seen: set[torch.nn.Module] = set()

    def check(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        seen.add(module)
        assert all(image.is_contiguous(memory_format=torch.channels_last) for image in (*inputs, output))

    for convolution in convolutions:
        convolution.register_forward_hook(check)
    encode(vae, random_pixels(vae, 2, 60, 3), **options)
    encode_together(vae, random_pixels(vae, 1, 20, 3), 2)
    assert seen == set(convolutions)


def test_cudnn_times_convolutions_while_a_shape_is_warmed_up_and_never_else() -> None:
    vae = encoder_of(random_weights({}))
    timed: list[bool] = []
    vae.encoder.conv_out.register_forward_pre_hook(lambda *_: timed.append(torch.backends.cudnn.benchmark))
    pixels = random_pixels(vae, 1, 2, 2)
    with torch.inference_mode():
        vae.warm_up(pixels)
    encode(vae, pixels)
    assert timed == [True, False]
    assert not torch.backends.cudnn.benchmark
