"""Too little memory for decoding: the image is decoded again, in smaller tiles."""

from __future__ import annotations

import threading
from concurrent.futures import wait
from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.config.engine_config import VAE
from engine.model.patches import unpack_latents
from engine.model.tiles import SMALLEST_TILE
from tests.engine.rank.short_of_memory import Ranked, decoding_fails, make_jobs
from tests.engine_runs import DEADLINE_S


@pytest.mark.parametrize("offload", [(), (VAE,)])
def test_an_image_that_cannot_be_decoded_beside_a_step_is_decoded_in_small_tiles(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, offload: tuple[str, ...]
) -> None:
    caplog.set_level("WARNING")
    (job, _, other) = (replace(job, preview_every=0, loras=()) for job in make_jobs())
    ranked = Ranked(offload=offload)
    ranked.execute(start=(job, other), denoise=(0, 2))
    ranked.execute(denoise=(0, 2))
    with decoding_fails(ranked.rank, monkeypatch, times=1) as tiles:
        ranked.execute(denoise=(0,), decode=(2,))
        ranked.rank.decoder.settle()
        ranked.execute(decode=(0,))  # the next step hears of it
        assert {ranked.image().job_id for _ in range(2)} == {0, 2}
    assert tiles == [None, SMALLEST_TILE, None]
    assert not ranked.failures
    with decoding_fails(ranked.rank, monkeypatch, times=2) as tiles:
        ranked.execute(start=(replace(job, steps=1),), denoise=(0,), decode=(0,))
        ranked.rank.decoder.settle()
        ranked.execute()
    assert tiles == [None, SMALLEST_TILE]
    assert ranked.failures[0].message.startswith(
        "the image of 64 × 48 with seed 0 ran out of memory on cpu: decoding needs about "
    )
    why = "CUDA out of memory. Tried to allocate 2.00 GiB"
    assert [record.getMessage() for record in caplog.records] == [
        f"out of memory in decoding 48 × 64: {why}",
        f"out of memory in decoding 64 × 48: {why}",
        f"out of memory in decoding 64 × 48 in small tiles: {why}",
    ]
    ranked.rank.close()


def test_images_that_fail_to_be_decoded_one_after_the_other_are_all_decoded_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second fails while the first is looked after."""
    jobs = [replace(job, preview_every=0, loras=(), steps=1) for job in make_jobs()[:2]]
    ranked = Ranked()
    ranked.execute(start=tuple(jobs), denoise=(0, 1))
    second_may_fail = threading.Event()
    assert ranked.rank.model.vae is not None
    decode, attempts = ranked.rank.model.vae.decode_pixels, list[int | None]()

    def attempt(latents: torch.Tensor, *, tile: int | None = None) -> torch.Tensor:
        attempts.append(tile)
        if len(attempts) > 2:
            return decode(latents, tile=tile)
        if len(attempts) == 2:
            assert second_may_fail.wait(DEADLINE_S)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    settle = ranked.rank.decoder.settle

    def settle_both() -> None:
        second_may_fail.set()
        settle()

    monkeypatch.setattr(ranked.rank.model.vae, "decode_pixels", attempt)
    monkeypatch.setattr(ranked.rank.decoder, "settle", settle_both)
    ranked.execute(decode=(0, 1))
    wait([ranked.rank.decoder._queue[0].future])
    ranked.execute()
    assert [ranked.image().job_id for _ in jobs] == [0, 1]
    assert attempts == [None, None, SMALLEST_TILE, SMALLEST_TILE]
    assert not ranked.failures
    ranked.rank.close()


def test_an_image_that_the_previews_cannot_learn_from_comes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has been handed on by then, so that a request for several would count it twice."""
    (job, *_) = (replace(job, preview_every=0, steps=1) for job in make_jobs())
    ranked = Ranked()

    def learn(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(ranked.rank.decoder.previews, "learn", learn)
    ranked.execute(start=(job,), denoise=(0,), decode=(0,))
    ranked.rank.decoder.settle()
    ranked.execute()
    ranked.rank.close()
    assert [image.job_id for image in ranked.images.queue] == [0]
    assert not ranked.failures


@pytest.mark.parametrize("fails", [1, 3])  # of both images the first time, and of one the second
def test_memory_that_runs_out_on_the_way_to_the_decoder_costs_one_image_at_most(
    monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    (job, other, _) = (replace(job, preview_every=0, loras=(), steps=1) for job in make_jobs())
    ranked = Ranked()
    ranked.execute(start=(job, other), denoise=(0, 1))
    attempts = list[int]()

    def unpack(*arguments: Any) -> torch.Tensor:
        attempts.append(0)
        if len(attempts) <= fails:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return unpack_latents(*arguments)

    monkeypatch.setattr("engine.rank.image_decoder.unpack_latents", unpack)
    ranked.execute(decode=(0, 1))
    ranked.rank.close()
    assert {image.job_id for image in ranked.images.queue} == ({0, 1} if fails == 1 else {1})
    assert list(ranked.failures) == ([] if fails == 1 else [0])


def test_the_last_image_is_decoded_again_when_a_rank_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    (job, *_) = (replace(job, preview_every=0, steps=1) for job in make_jobs())
    ranked = Ranked()
    with decoding_fails(ranked.rank, monkeypatch, times=1) as tiles:
        ranked.execute(start=(job,), denoise=(0,), decode=(0,))
        ranked.rank.close()
    assert tiles == [None, SMALLEST_TILE]
    assert ranked.image().job_id == 0
