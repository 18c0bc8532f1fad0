"""What ranks hold of pictures: encoded once, by whom there are rows enough for, and let go in time."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.model.tiles import SMALLEST_TILE
from engine.model.vae_encoder import VAEEncoder
from engine.parallel.group import Group
from engine.rank.rank import Rank
from engine.step import Picture, Step
from tests.engine_runs import RankGroup, RankGroups, jobs_of
from tests.oracle import Request, relative_error
from tests.step_scripts import pixels_of

REQUEST = Request("a red circle", width=64, height=48, steps=3, seeds=(0, 1, 2))


def watch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The height of each picture that is encoded, in latent pixels, and among how many ranks."""
    encoded, forward = list[tuple[int, int]](), VAEEncoder.forward

    def watched(self: VAEEncoder, pixels: torch.Tensor, *, group: Group | None = None, **options: Any) -> torch.Tensor:
        encoded.append((pixels.shape[2] // 8, 1 if group is None else group.size))
        return forward(self, pixels, group=group, **options)

    monkeypatch.setattr(VAEEncoder, "forward", watched)
    return encoded


def test_images_of_one_picture_share_its_encoding_and_it_goes_with_them(
    rank_groups: RankGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They begin in several steps. Other images are not held up: nothing is encoded, and no time is told."""
    picture = Picture(4, 64, 48)
    jobs = [replace(job, picture=picture, skipped_steps=1) for job in jobs_of(DEMO_CHECKPOINT, [REQUEST])]
    other = replace(jobs_of(DEMO_CHECKPOINT, [REQUEST])[0], job_id=9)
    encoded, held, times = watch(monkeypatch), list[Any](), list[tuple[bool, int]]()
    get, execute = RankGroup.on_ranks, Rank.execute

    def watched(rank: Rank, step: Step, pixels: Any) -> Any:
        handle = execute(rank, step, pixels)
        told = handle.wait()
        times.append((told.picture_s > 0, told.encoded_pixels))
        if step.encode:
            held.append(weakref.ref(rank.pictures.get(picture).latents))
        return handle

    monkeypatch.setattr(Rank, "execute", watched)
    group = rank_groups.get(DEMO_CHECKPOINT)
    group.run_jobs([*jobs, other], joins=[0, 1, 1, 0], pixels={4: pixels_of(picture)})
    assert encoded == [(6, 1)]
    assert times[0] == (True, 64 * 48)
    assert set(times[1:]) == {(False, 0)}
    gc.collect()
    assert [each() for each in held] == [None]
    assert get(group, lambda rank: rank.pictures.held) == [0]


@pytest.mark.parametrize(
    ("mode", "saving"),
    [({"tp": 2}, {}), ({"sp": 2}, {"offload": ("vae",)}), ({"cfg_parallel": True}, {})],
    ids=["tp 2", "sp 2, offload", "cfg"],
)
def test_ranks_encode_a_picture_together_if_each_gets_enough_of_its_rows(
    rank_groups: RankGroups, monkeypatch: pytest.MonkeyPatch, mode: dict[str, Any], saving: dict[str, Any]
) -> None:
    """Whoever encodes it, all have the same."""
    pictures = [Picture(height, 32, height, masked=True) for height in (48, 272)]
    pixels = {picture.picture_id: pixels_of(picture) for picture in pictures}

    def look(rank: Rank) -> list[torch.Tensor]:
        rank.pictures.forget(pixels)
        for picture in pictures:
            rank.pictures.encode(picture, pixels[picture.picture_id] if rank.model.mesh.world.rank == 0 else None)
        held = [rank.pictures.get(picture) for picture in pictures]
        rank.pictures.forget(pixels)
        return [tensor for each in held for tensor in (each.latents, each.mask) if tensor is not None]

    (alone,) = rank_groups.on_ranks(DEMO_CHECKPOINT, look)
    encoded = watch(monkeypatch)
    every = rank_groups.on_ranks(DEMO_CHECKPOINT, look, **mode, **saving)
    assert Counter(encoded) == Counter({(6, 1): 1, (34, 1): 1} if saving else {(6, 1): 1, (34, 2): 2})
    for held in every:
        for one, first, other in zip(held, every[0], alone, strict=True):
            assert torch.equal(one, first)
            assert relative_error(one, other) <= 1e-5


def test_a_picture_is_encoded_in_tiles_where_an_image_of_its_size_is_decoded_so(
    rank_groups: RankGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together with nobody. It is the same picture."""
    picture, tiles, forward = Picture(2, 512, 400), list[int | None](), VAEEncoder.forward

    def watched(self: VAEEncoder, pixels: torch.Tensor, *, tile: int | None = None, **options: Any) -> torch.Tensor:
        tiles.append(tile)
        assert options == {"group": None}
        return forward(self, pixels, tile=tile, **options)

    def look(rank: Rank) -> torch.Tensor:
        rank.pictures.encode(picture, pixels_of(picture) if rank.model.mesh.world.rank == 0 else None)
        latents = rank.pictures.get(picture).latents
        rank.pictures.forget([2])
        return latents

    monkeypatch.setattr(VAEEncoder, "forward", watched)
    (whole,) = rank_groups.on_ranks(DEMO_CHECKPOINT, look)
    one, other = rank_groups.on_ranks(DEMO_CHECKPOINT, look, vae_memory=1, tp=2)
    assert tiles == [None, SMALLEST_TILE]
    assert torch.equal(one, other)
    assert relative_error(one, whole) <= 1e-5
