"""An image that several ranks decode together, each some of its rows: the picture is that of one rank."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.model.vae import VAEDecoder
from engine.parallel.group import Group, LocalGroup
from engine.parallel.row_share import ImageRows
from tests.engine.model.test_vae_on_devices import REAL_PROPORTIONS, decoder
from tests.engine.parallel.thread_group import thread_groups

TOLERANCE = 1e-5  # of pixels in [-1, 1]; measured 1e-6, sums in another order


def split(vae: VAEDecoder, latents: torch.Tensor, ranks: int, *, pixels: bool = False) -> list[torch.Tensor]:
    """What each rank has of the picture."""

    def decode(group: Group) -> torch.Tensor:
        try:
            with torch.inference_mode():
                return vae.decode_pixels(latents, group=group) if pixels else vae(latents, group=group)
        except BaseException:
            group.close()
            raise

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(decode, thread_groups(ranks, spoils=True)))


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("fields", [{}, REAL_PROPORTIONS, {"dim_mult": (2, 1, 3), "num_res_blocks": 3}])
def test_rows_are_those_of_the_whole(ranks: int, fields: dict[str, Any]) -> None:
    vae = decoder(**fields)
    seed = random.randrange(2**32)
    source = random.Random(seed)
    heights = [height for height in range(8, 48) if all(vae.divides(height, group) for group in thread_groups(ranks))]
    for _ in range(3):
        height, width = source.choice(heights), source.randint(1, 12)
        latents = torch.randn(source.randint(1, 2), 16, height, width, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            whole = vae(latents)
        assert whole.std() > 0.02
        rows = split(vae, latents, ranks)
        assert len({part.shape[2] for part in rows[:-1]}) == 1
        torch.testing.assert_close(torch.cat(rows, dim=2), whole, atol=TOLERANCE, rtol=0, msg=f"{seed}, {height}")


def test_a_row_too_few_would_show() -> None:
    """The reach is not a guess: with one row less the rows at a cut are others."""
    vae = decoder(**REAL_PROPORTIONS)
    latents = torch.randn(1, 16, 16, 4, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = vae(latents)
    vae.decoder.reach -= 1
    assert (torch.cat(split(vae, latents, 2), dim=2) - whole).abs().max() > 10 * TOLERANCE


def test_every_rank_gets_all_bytes() -> None:
    vae = decoder(**REAL_PROPORTIONS)
    latents = torch.randn(1, 16, 31, 6, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = vae.decode_pixels(latents).int()
    for pixels in split(vae, latents, 4, pixels=True):
        assert pixels.shape == whole.shape
        assert pixels.is_contiguous()
        assert (pixels.int() - whole).abs().max() <= 1


def test_a_cut_image_is_channels_last_between_all_convolutions() -> None:
    vae = decoder(**REAL_PROPORTIONS)
    images: list[bool] = []

    def check(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        images.extend(image.is_contiguous(memory_format=torch.channels_last) for image in (*inputs, output))

    for module in vae.decoder.modules():
        if getattr(module, "weight", torch.empty(0)).dim() == 4:
            module.register_forward_hook(check)
    split(vae, torch.randn(1, 16, 20, 6), 2)
    assert images
    assert all(images)


@settings(max_examples=50)
@given(height=st.integers(1, 300), ranks=st.sampled_from([1, 2, 4]), reach=st.integers(1, 9))
def test_ranks_have_all_rows_and_at_least_the_reach(height: int, ranks: int, reach: int) -> None:
    groups = thread_groups(ranks) if ranks > 1 else [LocalGroup()]
    assume(min(groups[0].shares(height)) >= reach)
    own = [ImageRows(height, group).own for group in groups]
    assert [row for rows in own for row in range(rows.start, rows.stop)] == list(range(height))
    assert all(rows.stop - rows.start >= reach for rows in own)
