"""Images decoded in tiles: near the whole, without seams, in the memory that the arithmetic says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.model.tiles import OVERLAP, SMALLEST_TILE, divide
from engine.model.vae import VAEDecoder, _tile_weights
from engine.parallel.mesh import Mesh
from engine.planning.step_memory import decode_bytes, tile_side
from engine.rank.rank import Rank
from tests.cpu_kinds import DECODINGS, pretend
from tests.engine.planning.test_step_memory import peak_bytes

DEMO = ModelConfig.from_folder(DEMO_CHECKPOINT)
CPU = torch.device("cpu")
SCALE = 8


@pytest.fixture(scope="module")
def vae() -> VAEDecoder:
    rank = Rank(EngineConfig(), Mesh(), CPU)
    assert rank.model.vae is not None
    return rank.model.vae


def make_latents(height: int, width: int, *, smooth: bool) -> torch.Tensor:
    """Noise, or large shapes, of which an error near a cut shows more."""
    generator = torch.Generator().manual_seed(0)
    if not smooth:
        return torch.randn(1, 16, height, width, generator=generator)
    coarse = torch.randn(1, 16, height // 8, width // 8, generator=generator)
    return F.interpolate(coarse, size=(height, width), mode="bicubic")


@given(st.integers(1, 600), st.integers(1, 600))
def test_tiles_cover_a_side_and_overlap_enough(length: int, longest: int) -> None:
    tiles = divide(length, longest)
    ends = [start + tiles.size for start in tiles.starts]
    assert tiles.starts[0] == 0
    assert ends[-1] == length
    assert tiles.size <= max(longest, SMALLEST_TILE)
    for end, start in zip(ends, tiles.starts[1:], strict=False):
        assert OVERLAP <= end - start <= OVERLAP + len(ends)


@given(st.integers(1, 600), st.integers(1, 600))
def test_tile_weights_add_up_to_one_everywhere(length: int, longest: int) -> None:
    tiles = divide(length, longest)
    total = torch.zeros(length * SCALE)
    for start, share in zip(tiles.starts, _tile_weights(tiles, length, SCALE, CPU), strict=True):
        assert bool((share >= 0).all())
        total[start * SCALE : (start + tiles.size) * SCALE] += share
    assert torch.allclose(total, torch.ones_like(total))


@pytest.mark.parametrize("smooth", [False, True])
def test_tiles_make_the_picture_that_the_whole_makes(vae: VAEDecoder, smooth: bool) -> None:
    latents = make_latents(100, 72, smooth=smooth)
    with torch.inference_mode():
        whole, tiled = vae.decode_pixels(latents).int(), vae.decode_pixels(latents, tile=SMALLEST_TILE).int()
    difference = (whole - tiled).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-3


def test_there_are_no_seams(vae: VAEDecoder) -> None:
    """From one pixel to the next a picture changes no more across a border of tiles than it does when it is whole."""
    latents = make_latents(100, 72, smooth=True)
    with torch.inference_mode():
        whole, tiled = vae(latents), vae(latents, tile=SMALLEST_TILE)
    tiles = divide(100, SMALLEST_TILE)
    rows = [start * SCALE for start in tiles.starts[1:]] + [(start + tiles.size) * SCALE for start in tiles.starts[:-1]]
    assert len(rows) >= 4
    for row in rows:
        for near in range(row - 2, row + 2):
            steps = [(picture[:, :, near] - picture[:, :, near - 1]).abs() for picture in (tiled, whole)]
            assert float((steps[0] - steps[1]).abs().max()) < 1e-3
            assert float(steps[0].mean()) <= 1.001 * float(steps[1].mean())


def test_an_image_is_whole_where_it_fits_and_in_the_largest_tiles_that_fit_elsewhere() -> None:
    whole = decode_bytes(DEMO, 1024, 768, 4)
    assert tile_side(DEMO, 1024, 768, 4, None) is tile_side(DEMO, 1024, 768, 4, whole) is None
    side = tile_side(DEMO, 1024, 768, 4, whole - 1)
    assert side is not None
    assert decode_bytes(DEMO, 1024, 768, 4, whole - 1) < whole
    smaller = tile_side(DEMO, 1024, 768, 4, whole // 2)
    assert smaller is not None
    assert SMALLEST_TILE < smaller < side
    assert decode_bytes(DEMO, 1024, 768, 4, whole // 2) <= whole // 2
    assert tile_side(DEMO, 1024, 768, 4, 1) == SMALLEST_TILE
    assert tile_side(DEMO, 256, 256, 4, 1) is None  # smaller than a tile


@pytest.mark.parametrize(("dtype", "native_bfloat16"), DECODINGS)
@pytest.mark.parametrize("part", [0.5, 0.3])
def test_tiles_allocate_no_more_than_the_arithmetic_says(
    monkeypatch: pytest.MonkeyPatch, dtype: str, native_bfloat16: bool, part: float
) -> None:
    pretend(monkeypatch, native_bfloat16=native_bfloat16)
    rank = Rank(EngineConfig(dtype=dtype), Mesh(), CPU)
    assert rank.model.vae is not None
    vae, latents = rank.model.vae, make_latents(96, 128, smooth=False)
    e = rank.model.decode_memory.bytes_per_element
    limit = int(part * decode_bytes(DEMO, 1024, 768, e))
    with torch.inference_mode():
        peak = peak_bytes(lambda: vae.decode_pixels(latents, tile=tile_side(DEMO, 1024, 768, e, limit)))
    estimate = decode_bytes(DEMO, 1024, 768, e, limit)
    assert 0.4 * estimate < peak <= estimate <= limit


def test_a_rank_decodes_in_tiles_what_would_take_too_much() -> None:
    limit = decode_bytes(DEMO, 512, 512, 4) // 2
    rank = Rank(EngineConfig(vae_memory=limit), Mesh(), CPU)
    assert rank.memory()["decode_limit"] == limit
    assert rank.decoder.tile_side(512, 512) == tile_side(DEMO, 512, 512, 4, limit) is not None
    assert rank.decoder.tile_side(256, 256) is None
