"""Too little memory for a picture that images begin from: it is encoded alone and in tiles, or its images fail."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.model.tiles import SMALLEST_TILE
from engine.model.vae_encoder import VAEEncoder
from tests.engine.rank.short_of_memory import REQUESTS, Ranked, begun
from tests.engine_runs import jobs_of


def encoding_fails(monkeypatch: pytest.MonkeyPatch, sizes: set[tuple[int, int]], times: int) -> list[int | None]:
    """The tiles of each attempt, of which the first `times` of these widths and heights find no memory."""
    forward, tiles = VAEEncoder.forward, list[int | None]()

    def attempt(self: VAEEncoder, pixels: torch.Tensor, *, tile: int | None = None, **options: Any) -> torch.Tensor:
        tiles.append(tile)
        if (pixels.shape[3], pixels.shape[2]) in sizes and len(tiles) <= times:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, pixels, tile=tile, **options)

    monkeypatch.setattr(VAEEncoder, "forward", attempt)
    return tiles


def test_a_picture_is_encoded_again_alone_and_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    job = begun(jobs_of(DEMO_CHECKPOINT, REQUESTS)[0], 3)
    ranked = Ranked()
    expected = ranked.run([job])
    with monkeypatch.context() as patch:
        tiles = encoding_fails(patch, {(job.width, job.height)}, times=1)
        latents = ranked.run([job])
    assert tiles == [None, SMALLEST_TILE]
    assert not ranked.failures
    assert torch.allclose(latents[0], expected[0], atol=1e-4)
    assert not ranked.rank.pictures.held
    ranked.rank.close()


def test_a_picture_that_fails_alone_takes_its_images_with_it_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that begin in later steps too, until it is forgotten. Pictures that are held stay so."""
    wide, _, tall = jobs_of(DEMO_CHECKPOINT, REQUESTS)  # 64 × 48 and 48 × 64
    good, other = begun(wide, 1), replace(begun(wide, 1), job_id=10)
    lost, later = begun(tall, 2), replace(begun(tall, 2), job_id=11)
    ranked = Ranked()
    ranked.execute(encode=(good.picture,))
    encoding_fails(monkeypatch, {(tall.width, tall.height)}, times=100)
    times = ranked.execute(encode=(lost.picture,), start=(good, lost), denoise=(good.job_id, lost.job_id))
    assert list(ranked.failures) == [lost.job_id]
    error = ranked.failures[lost.job_id]
    assert error.code == "out_of_memory"
    assert error.message.startswith("the image of 48 × 64 with seed 2 ran out of memory on cpu: encoding its picture ")
    assert not times.one_by_one
    assert list(ranked.rank.jobs) == [good.job_id]
    assert ranked.rank.jobs[good.job_id].step == 1
    ids = (other.job_id, later.job_id, lost.job_id)
    ranked.execute(start=(other, later), denoise=ids)
    assert list(ranked.failures) == [lost.job_id, later.job_id]
    assert list(ranked.rank.jobs) == [good.job_id, other.job_id]
    ranked.execute(decode=(lost.job_id, good.job_id), release=(later.job_id, other.job_id), forget=(1, 2))
    assert ranked.image().job_id == good.job_id
    recovery = ranked.rank.recovery
    assert (recovery.failed, recovery.lost, ranked.rank.pictures.held) == (set(), set(), 0)
    ranked.rank.close()
