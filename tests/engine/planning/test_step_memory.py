"""The memory arithmetic against what torch really allocates."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from engine.config.chat_template import MAX_PROMPT_TOKENS, SUFFIX_TOKENS
from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.device.devices import decoding_dtype
from engine.model.tiles import divide_exactly
from engine.model.vae import VAEDecoder
from engine.model.vae_encoder import VAEEncoder
from engine.parallel.mesh import Mesh
from engine.planning.step_memory import (
    DecodeMemory,
    decode_bytes,
    encode_bytes,
    picture_encode_bytes,
    picture_tile_side,
    step_bytes,
    tile_side,
    tiled_decode_bytes,
)
from engine.rank.rank import Rank
from engine.step import Job, Step
from tests.cpu_kinds import DECODINGS, pretend
from tests.engine.model.test_vae_encoder import encode, encoder_of, random_weights

DEMO = ModelConfig.from_folder(DEMO_CHECKPOINT)
TEXT_TOKENS = 20
CPU = torch.device("cpu")


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most that was allocated at one time while `work` ran, beyond what was there before."""
    gc.collect()
    gc.disable()  # what an earlier test held would be given back in the middle
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            work()
    finally:
        gc.enable()
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    assert changes
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize(("width", "height"), [(512, 512), (256, 1024)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_allocates_no_more_than_the_arithmetic_says(width: int, height: int, dtype: str) -> None:
    rank = Rank(EngineConfig(dtype=dtype), Mesh(), CPU)
    job = Job(0, tuple(range(34 + TEXT_TOKENS)), None, width, height, 4, 0.0, None, 0)
    rank.execute(Step(0, start=(job,), denoise=(0,)))
    peak = peak_bytes(lambda: rank.execute(Step(1, denoise=(0,))))
    tokens = DEMO.image_tokens(width, height) + TEXT_TOKENS
    estimate = step_bytes(DEMO, tokens, 1, rank.model.dtype.itemsize)
    assert 0.4 * estimate < peak <= estimate


@pytest.mark.parametrize(("width", "height"), [(512, 512), (256, 1024)])
@pytest.mark.parametrize(("dtype", "native_bfloat16"), DECODINGS)
def test_decoding_allocates_no_more_than_the_arithmetic_says(
    monkeypatch: pytest.MonkeyPatch, width: int, height: int, dtype: str, native_bfloat16: bool
) -> None:
    pretend(monkeypatch, native_bfloat16=native_bfloat16)
    rank = Rank(EngineConfig(dtype=dtype), Mesh(), CPU)
    assert rank.model.vae is not None
    vae, latents = rank.model.vae, torch.randn(1, 16, height // 8, width // 8)
    with torch.inference_mode():
        peak = peak_bytes(lambda: vae.decode_pixels(latents))
    estimate = decode_bytes(DEMO, width, height, rank.model.decode_memory.bytes_per_element)
    assert 0.4 * estimate < peak <= estimate


@pytest.mark.parametrize(("dtype", "native_bfloat16"), DECODINGS)
@pytest.mark.parametrize("part", [None, 0.5])
def test_encoding_a_picture_allocates_no_more_than_the_arithmetic_says(
    monkeypatch: pytest.MonkeyPatch, dtype: str, native_bfloat16: bool, part: float | None
) -> None:
    """Whole, and in the tiles that half of that allows."""
    pretend(monkeypatch, native_bfloat16=native_bfloat16)
    weights = random_weights({"base_dim": 8, "dim_mult": (1, 2, 4, 4)})
    vae = encoder_of(weights, dtype=getattr(torch, dtype))
    width, height, e = 768, 448, decoding_dtype(CPU, vae.quant_conv.weight.dtype).itemsize
    whole = picture_encode_bytes(weights.config, width, height, e)
    limit = None if part is None else int(part * whole)
    side = picture_tile_side(weights.config, width, height, e, limit)
    assert (side is None) is (limit is None)
    rgb = torch.zeros((height, width, 3), dtype=torch.uint8)

    def work() -> None:
        pixels = rgb.clone().permute(2, 0, 1)[None].float().div_(127.5).sub_(1)
        encode(vae, pixels, tile=side)

    estimate = picture_encode_bytes(weights.config, width, height, e, limit)
    assert 0.4 * estimate < peak_bytes(work) <= estimate <= (limit or whole)


@pytest.mark.parametrize("native_bfloat16", [False, True])
def test_tiles_and_plans_go_by_what_images_are_decoded_in(
    monkeypatch: pytest.MonkeyPatch, native_bfloat16: bool
) -> None:
    pretend(monkeypatch, native_bfloat16=native_bfloat16)
    element = 2 if native_bfloat16 else 4
    limit = decode_bytes(DEMO, 512, 512, element) // 2
    rank = Rank(EngineConfig(dtype="bfloat16", vae_memory=limit), Mesh(), CPU)
    assert rank.model.decode_memory == DecodeMemory(element, limit)
    assert rank.decoder.tile_side(512, 512) == tile_side(DEMO, 512, 512, element, limit) is not None
    size = DEMO.default_width, DEMO.default_height
    tokens = DEMO.image_tokens(*size) + MAX_PROMPT_TOKENS + SUFFIX_TOKENS
    before = max(step_bytes(DEMO, tokens, 1, 2), encode_bytes(DEMO, 1, 2))
    assert rank.model.offload.plan.work == before + decode_bytes(DEMO, *size, element, limit)


@settings(max_examples=200)
@given(
    base=st.integers(1, 12),
    multipliers=st.sampled_from([(1, 2, 4, 4), (1, 1, 1, 1), (4, 2, 2, 1), (1, 8, 8, 8)]),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    element=st.sampled_from([2, 4]),
    tile=st.none() | st.integers(1, 320),
)
def test_scores_of_the_middle_fit_into_what_the_levels_after_it_take(
    base: int, multipliers: tuple[int, ...], height: int, width: int, element: int, tile: int | None
) -> None:
    """On a GPU the attention of a decoder of four levels holds, beside them, its input and that of the block before it,
    queries, keys, values and result."""
    config = replace(DEMO, vae=replace(DEMO.vae, base_dim=8 * base, dim_mult=multipliers))
    with torch.device("meta"):
        vae = VAEDecoder(config.vae)
    scale = config.vae.scale_factor
    latents = height * 8, width * 8
    size = latents[1] * scale, latents[0] * scale
    pixels, channels, room = math.prod(latents), 8 * base * multipliers[-1], vae.score_bytes(*latents, tile)
    images = 6 * pixels * channels * element
    sums = min(4096, pixels, room // (pixels * (4 + element))) * (channels + 1) * 4
    if tile is None or tile >= max(latents):
        estimate = decode_bytes(config, *size, element)
    else:
        estimate = tiled_decode_bytes(config, *size, element, tile)
    assert images + room + sums <= estimate


@settings(max_examples=100)
@given(
    base=st.integers(1, 12),
    multipliers=st.sampled_from([(1, 2, 4, 4), (1, 1, 1, 1), (4, 2, 2, 1), (1, 8, 8, 8)]),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    element=st.sampled_from([2, 4]),
    limit=st.none() | st.integers(1, 10**9),
)
def test_scores_of_the_encoders_middle_fit_into_what_is_reckoned(
    base: int, multipliers: tuple[int, ...], height: int, width: int, element: int, limit: int | None
) -> None:
    """As of the decoder's middle."""
    config = replace(DEMO, vae=replace(DEMO.vae, base_dim=8 * base, dim_mult=multipliers))
    with torch.device("meta"):
        vae = VAEEncoder(config.vae)
    latents = height * 8, width * 8
    size = latents[1] * 8, latents[0] * 8
    tile = picture_tile_side(config, *size, element, limit)
    seen = [divide_exactly(slice(0, length), length, vae.encoder.reach, tile)[0].seen.stop for length in latents]
    pixels, channels, room = math.prod(latents), 8 * base * multipliers[-1], vae.score_bytes(*seen)
    images = 6 * pixels * channels * element
    sums = min(4096, pixels, room // (pixels * (4 + element))) * (channels + 1) * 4
    assert images + room + sums <= picture_encode_bytes(config, *size, element, limit)


@pytest.mark.gpu
@pytest.mark.parametrize(("width", "height"), [(512, 512), (1024, 1024), (2048, 2048)])
def test_decoding_at_the_real_size_on_a_gpu_allocates_no_more_than_the_arithmetic_says(width: int, height: int) -> None:
    config = replace(DEMO, vae=replace(DEMO.vae, base_dim=96, num_res_blocks=2))
    with torch.device("meta"):
        vae = VAEDecoder(config.vae)
    weights = {name: torch.randn(parameter.shape) * 0.02 for name, parameter in vae.named_parameters()}
    vae.load_state_dict({name: weight.to("cuda", torch.bfloat16) for name, weight in weights.items()}, assign=True)
    latents = torch.randn(1, 16, height // 8, width // 8, device="cuda")
    with torch.inference_mode():
        vae.warm_up(latents)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        vae.decode_pixels(latents)
    peak = torch.cuda.max_memory_allocated() - before
    estimate = decode_bytes(config, width, height, 2)
    assert 0.4 * estimate < peak <= estimate


@pytest.mark.gpu
@pytest.mark.parametrize(("width", "height"), [(512, 512), (1024, 1024), (2048, 2048)])
def test_encoding_at_the_real_size_on_a_gpu_allocates_no_more_than_the_arithmetic_says(width: int, height: int) -> None:
    weights = random_weights({"base_dim": 96, "dim_mult": (1, 2, 4, 4), "num_res_blocks": 2})
    vae = encoder_of(weights, "cuda", torch.bfloat16)
    pixels = torch.zeros((1, 3, height, width), device="cuda")
    for limit in (None, picture_encode_bytes(weights.config, width, height, 2) // 2):
        tile = picture_tile_side(weights.config, width, height, 2, limit)
        with torch.inference_mode():
            vae.warm_up(pixels, tile=tile)
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated() - pixels.nbytes
            vae(pixels, tile=tile)
        peak = torch.cuda.max_memory_allocated() - before
        estimate = picture_encode_bytes(weights.config, width, height, 2, limit)
        assert 0.4 * estimate < peak <= estimate


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_encoding_many_long_prompts_allocates_no_more_than_the_arithmetic_says(dtype: str) -> None:
    rank = Rank(EngineConfig(dtype=dtype), Mesh(), CPU)
    jobs = tuple(Job(i, (i + 5, *range(545)), None, 64, 64, 1, 0.0, None, i) for i in range(7))
    jobs = tuple(replace(job, prompt_ids=tuple(t % 400 for t in job.prompt_ids)) for job in jobs)
    peak = peak_bytes(lambda: rank.execute(Step(0, start=jobs)))
    estimate = encode_bytes(DEMO, 1, rank.model.dtype.itemsize)
    assert 0.3 * estimate < peak <= estimate


def test_more_ranks_need_less_memory_for_a_step() -> None:
    model = ModelConfig.from_folder(DEMO_CHECKPOINT)
    needed = [step_bytes(model, 10_000, 1, 2, sp=sp) for sp in (1, 2, 4)]
    assert needed == sorted(needed, reverse=True)
    assert len(set(needed)) == 3
