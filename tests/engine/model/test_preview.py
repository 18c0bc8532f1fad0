from __future__ import annotations

import itertools
import threading
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.engine_config import EngineConfig
from engine.model.preview import SCALE, PreviewMap
from engine.parallel.mesh import Mesh
from engine.rank.image_decoder import DecodedImage
from engine.rank.rank import Rank
from engine.rank.step_handle import Preview
from engine.step import Step
from tests.engine_runs import DEADLINE_S, jobs_of
from tests.oracle import Request

# Large, so that a plain picture would be far off.
SEEN = (
    "a large red circle on a blue background",
    "a large yellow star on a black background",
    "a large green square on a white background",
    "a large purple heart on an orange background",
    "a large white circle on a red background",
    "a large blue heart on a green background",
)
UNSEEN = "a large red square on a green background"


def _images(count: int, channels: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Latents, and pixels that are a linear function of each latent's colour channels."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randn(3, channels, generator=torch.Generator().manual_seed(99)) / (6 * channels)
    images = []
    for _ in range(count):
        latents = torch.randn(channels, 6, 9, generator=generator)
        rgb = torch.einsum("oc,chw->ohw", colours, latents).add(0.5).clamp(0, 1)
        pixels = F.interpolate(rgb[None], scale_factor=8)[0].mul(255).round().to(torch.uint8)
        images.append((latents, pixels.permute(1, 2, 0)))
    return images


def test_what_a_linear_decoder_does_is_learned_from_its_images() -> None:
    previews = PreviewMap(4, torch.device("cpu"))
    for latents, pixels in _images(30, 4, seed=0):
        previews.learn(latents, pixels)
    ((latents, pixels),) = _images(1, 4, seed=1)
    drawn = previews.draw(latents)
    assert drawn is not None
    assert drawn.shape == (6 * SCALE, 9 * SCALE, 3)
    assert drawn.dtype == torch.uint8
    small = pixels[::4, ::4].int()
    assert (drawn.int() - small).abs().float().mean() < 3  # of 255: ridge and rounding


def test_nothing_is_drawn_before_an_image_was_seen() -> None:
    assert PreviewMap(4, torch.device("cpu")).draw(torch.zeros(4, 2, 2)) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e20])
def test_latents_that_ran_away_teach_nothing(value: float) -> None:
    previews = PreviewMap(4, torch.device("cpu"))
    images = _images(3, 4, seed=0)
    for latents, pixels in images:
        previews.learn(latents, pixels)
    before = previews.draw(images[0][0])
    previews.learn(torch.full((4, 2, 2), value), torch.zeros(16, 16, 3, dtype=torch.uint8))
    after = previews.draw(images[0][0])
    assert before is not None
    assert after is not None
    assert torch.equal(before, after)


def test_previews_of_the_demo_come_when_they_are_due_and_show_what_the_image_becomes() -> None:
    requests = [Request(text, 128, 128, 8, seeds=(5,)) for text in (*SEEN, UNSEEN)]
    jobs = jobs_of(DEMO_CHECKPOINT, requests)
    jobs[-1] = replace(jobs[-1], preview_every=3)
    images: dict[int, DecodedImage] = {}
    decoded = threading.Semaphore(0)

    def keep(image: DecodedImage) -> None:
        images[image.job_id] = image
        decoded.release()

    rank = Rank(EngineConfig(), Mesh(), torch.device("cpu"), on_image=keep)
    number = itertools.count()
    for batch in (jobs[:-1], jobs[-1:]):
        previews: list[Preview] = []
        ids = tuple(job.job_id for job in batch)
        for step in range(8):
            start, decode = tuple(batch) if step == 0 else (), ids if step == 7 else ()
            previews += rank.execute(Step(next(number), start, ids, decode)).previews
        for _ in batch:
            assert decoded.acquire(timeout=DEADLINE_S)
    rank.close()
    assert [(preview.job_id, preview.step) for preview in previews] == [(jobs[-1].job_id, 3), (jobs[-1].job_id, 6)]
    image = torch.frombuffer(bytearray(images[jobs[-1].job_id].rgb), dtype=torch.uint8).view(128, 128, 3)
    small = F.avg_pool2d(image.permute(2, 0, 1).float(), 8 // SCALE).permute(1, 2, 0)
    flat = (small - small.mean((0, 1))).abs().mean()  # what a picture of the mean colour would be off by
    for preview in previews:
        assert (preview.pixels.float() - small).abs().mean() < flat / 2
