"""Latents to pixels: by rank 0 beside the denoising of other jobs, or by all ranks in turn with it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from engine.device.devices import is_out_of_memory, release_tensors, to_host
from engine.device.timing import DeviceTime, record_time, seconds_between
from engine.model.patches import unpack_latents
from engine.model.preview import PreviewMap
from engine.model.tiles import SMALLEST_TILE
from engine.planning.step_memory import tile_side
from engine.rank.build import RankModel
from engine.rank.job_state import JobState
from engine.step import Job

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecodedImage:
    """A finished image of width × height pixels: `rgb` is height · width · 3 bytes. decode_s: seconds that the decoder
    took. finite: whether its latents are finite numbers, without which it shows nothing."""

    job_id: int
    width: int
    height: int
    rgb: bytes
    decode_s: float
    finite: bool


class _SharedPixels(NamedTuple):
    """What all ranks have decoded of an image together, (height, width, 3) uint8, and when."""

    pixels: torch.Tensor
    began: DeviceTime
    ended: DeviceTime


@dataclass(frozen=True, eq=False)
class _Queued:
    """A job whose image is decoded, or waits for it. tokens: its latents, (image tokens, in_channels)."""

    job: Job
    tokens: torch.Tensor
    future: Future[None]


class ImageDecoder:
    """Has each finished image decoded where that is done in this mesh, and on rank 0 hands images on.

    Rank 0 runs the VAE in a thread (and on a GPU in a stream) of its own, so that other jobs go on denoising. previews:
    what it learns there of how latents look; None on the other ranks.
    """

    def __init__(self, model: RankModel, on_image: Callable[[DecodedImage], None] | None) -> None:
        """on_image: called on rank 0, in its thread."""
        self._model, self._on_image = model, on_image
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="vae")
        self._queue: list[_Queued] = []
        self._stream: torch.cuda.Stream | None = None
        self.previews: PreviewMap | None = None
        if model.mesh.world.rank == 0:
            self.previews = PreviewMap(model.config.vae.z_dim, model.device)
            if model.device.type == "cuda":
                # First in line for the GPU: decoding is a small part of a step, and the last that its image waits for.
                self._stream = torch.cuda.Stream(model.device, priority=-1)

    def decode(self, state: JobState) -> None:
        """Decode a job's image: on rank 0 beside the steps that follow, or in turn with them by all ranks."""
        model, job, tokens = self._model, state.job, state.latents
        shared = None
        if self._is_shared(job):
            assert model.vae is not None
            began = record_time(model.device)
            pixels = model.vae.decode_pixels(self.unpack(job, tokens)[None], group=model.mesh.world)[0]
            shared = _SharedPixels(pixels, began, record_time(model.device))
        if self.previews is None:
            return
        ready = None
        if self._stream is not None:
            ready = torch.cuda.Event(blocking=True)
            ready.record(torch.cuda.current_stream(tokens.device))
            for tensor in (tokens,) if shared is None else (tokens, shared.pixels):
                tensor.record_stream(self._stream)
        self._queue.append(_Queued(job, tokens, self._executor.submit(self._decode, job, tokens, ready, shared)))

    def warm_up(self, job: Job, latents: torch.Tensor) -> None:
        """Decode a job's latents, (z_dim, h, w), where images of its size are decoded. Returns when that is done."""
        if self._is_shared(job):
            assert self._model.vae is not None
            self._model.vae.warm_up(latents[None], group=self._model.mesh.world)
        elif self.previews is not None:
            self._executor.submit(self._on_stream, self._warm_up, job, latents).result()

    def decode_small(self, job: Job, tokens: torch.Tensor) -> None:
        """Decode in the least memory there is and hand the image on. Returns when that is done; raises what it
        raised."""
        self._executor.submit(self._on_stream, self._decode_pixels, job, tokens, None, SMALLEST_TILE).result()

    def take_failed(self) -> list[tuple[Job, torch.Tensor, BaseException]]:
        """Take those of the earlier images that could not be decoded: job, tokens and what was raised."""
        done = [queued for queued in self._queue if queued.future.done()]
        self._queue = [queued for queued in self._queue if queued not in done]
        return [(each.job, each.tokens, error) for each in done if (error := each.future.exception()) is not None]

    def settle(self) -> None:
        """Return when nothing is being decoded, however that ended."""
        wait([queued.future for queued in self._queue])

    def close(self) -> None:
        """Return when all is decoded."""
        self._executor.shutdown(wait=True)

    def draw_preview(self, job: Job, tokens: torch.Tensor) -> torch.Tensor | None:
        """Draw a job's tokens without noise, (image tokens, in_channels), as a small picture, (height, width, 3) uint8:
        None until that can be done."""
        assert self.previews is not None
        return self.previews.draw(self.unpack(job, tokens))

    def unpack(self, job: Job, tokens: torch.Tensor) -> torch.Tensor:
        """Lay out tokens of a job's image, (image tokens, in_channels), as latents, (z_dim, h, w)."""
        multiple = self._model.config.size_multiple
        return unpack_latents(tokens, job.height // multiple, job.width // multiple, self._model.config.patch_size)

    def tile_side(self, width: int, height: int) -> int | None:
        """Choose the side of the tiles that an image of this size is decoded in, in latent pixels; None for whole."""
        memory = self._model.decode_memory
        return tile_side(self._model.config, width, height, memory.bytes_per_element, memory.limit)

    def _is_shared(self, job: Job) -> bool:
        """Whether all ranks decode an image together: in turn with their steps, since two communicators must not be at
        work at once."""
        vae, engine = self._model.vae, self._model.engine
        if vae is None or not engine.decodes_together or self.tile_side(job.width, job.height) is not None:
            return False
        return vae.divides(job.height // vae.scale_factor, self._model.mesh.world)

    # ---- in the thread that decodes

    def _decode(
        self, job: Job, tokens: torch.Tensor, ready: torch.cuda.Event | None, shared: _SharedPixels | None
    ) -> None:
        if ready is not None:
            ready.synchronize()  # on the host, so that the decode's time is not that of the steps queued before it
        try:
            self._on_stream(self._decode_pixels, job, tokens, shared, self.tile_side(job.width, job.height))
        except Exception as error:
            if is_out_of_memory(error):
                _logger.warning("out of memory in decoding %d × %d: %s", job.width, job.height, error)
            release_tensors(error)  # which the future would hold until somebody looks at it
            raise

    def _on_stream(self, work: Callable[..., None], *arguments: Any) -> None:
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            work(*arguments)
            if self._stream is not None:
                self._stream.synchronize()  # before another stream draws with what was learned

    def _warm_up(self, job: Job, latents: torch.Tensor) -> None:
        assert self._model.vae is not None
        with self._model.offload.vae:
            self._model.vae.warm_up(latents[None], tile=self.tile_side(job.width, job.height))

    def _decode_pixels(self, job: Job, tokens: torch.Tensor, shared: _SharedPixels | None, tile: int | None) -> None:
        assert self._model.vae is not None
        assert self.previews is not None
        began = time.perf_counter()
        latents = self.unpack(job, tokens)
        if shared is not None:
            began -= seconds_between(shared.began, shared.ended)
            pixels = shared.pixels
        else:
            with self._model.offload.vae:
                pixels = self._model.vae.decode_pixels(latents[None], tile=tile)[0]
        if self._on_image is not None:
            on_host = to_host(pixels)
            if self._stream is not None:
                self._stream.synchronize()
            rgb = on_host.numpy().tobytes()
            seconds = time.perf_counter() - began
            finite = bool(latents.isfinite().all())
            self._on_image(DecodedImage(job.job_id, job.width, job.height, rgb, seconds, finite))
        try:
            self.previews.learn(latents, pixels)
        except Exception as error:  # the image has been handed on, and must not be again
            if not is_out_of_memory(error):
                raise
            release_tensors(error)
