"""Latents to pixels: by rank 0 beside the denoising of other jobs, or by all ranks in turn with it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from engine.config.model_config import ModelConfig
from engine.device.devices import to_host
from engine.device.out_of_memory import is_out_of_memory, release_tensors
from engine.device.timing import DeviceTime, record_time, seconds_between
from engine.model.preview import PreviewMap
from engine.model.tiles import SMALLEST_TILE
from engine.model.vae import VAEDecoder
from engine.parallel.mesh import Mesh
from engine.planning.step_memory import DecodeMemory, tile_side
from engine.rank.job_state import JobState
from engine.rank.sampling import unpack_latents
from engine.step import Job

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecodedImage:
    """A finished image: `rgb` is height · width · 3 bytes. `decode_s` is what the decoder took. `finite`: whether its
    latents are numbers, without which it shows nothing."""

    job_id: int
    width: int
    height: int
    rgb: bytes
    decode_s: float
    finite: bool


@dataclass(frozen=True)
class DecodedTogether:
    """The pixels of an image that all ranks have decoded, (height, width, 3) uint8, and when."""

    pixels: torch.Tensor
    began: DeviceTime
    ended: DeviceTime

    @property
    def seconds(self) -> float:
        """Once it has ended."""
        return seconds_between(self.began, self.ended)


@dataclass(frozen=True, eq=False)
class _Decoding:
    """An image that is decoded, or waits for it. tokens: (image tokens, in_channels)."""

    job: Job
    tokens: torch.Tensor
    future: Future[None]

    @property
    def ran_out_of_memory(self) -> bool:
        """Once it is done."""
        error = self.future.exception()
        return error is not None and is_out_of_memory(error)


class ImageDecoder:
    """Runs the VAE in a thread (and on a GPU in a stream) of its own, so that other jobs go on denoising; and hands
    images on."""

    def __init__(
        self,
        vae: VAEDecoder,
        previews: PreviewMap,
        device: torch.device,
        on_image: Callable[[DecodedImage], None] | None,
        *,
        unpack: Callable[[Job, torch.Tensor], torch.Tensor],
        tile: Callable[[int, int], int | None] = lambda width, height: None,
        presence: AbstractContextManager[None] | None = None,
    ) -> None:
        """unpack: a job's tokens, (image tokens, in_channels), to its latents, (z_dim, h, w). tile: the sides of the
        tiles that an image of some width and height is decoded in, as `VAEDecoder.forward` has them. presence: within
        it the VAE's weights are on the device; None: they always are."""
        self._vae, self._previews, self._on_image = vae, previews, on_image
        self._unpack, self._tile, self._presence = unpack, tile, presence or nullcontext()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="vae")
        self._decodings: list[_Decoding] = []
        # First in line for the GPU: decoding is a small part of a step, and the last that its image waits for.
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None

    def warm_up(self, latents: torch.Tensor) -> None:
        """Decode latents of this shape, (z_dim, h, w), in the thread that decodes. Returns when that is done."""
        self._executor.submit(self._on_stream, self._warm_up, latents).result()

    def submit(self, job: Job, tokens: torch.Tensor, together: DecodedTogether | None = None) -> None:
        """Decode a job's tokens, (image tokens, in_channels), unless that has been done, and hand the image on."""
        ready = None
        if self._stream is not None:
            ready = torch.cuda.Event(blocking=True)
            ready.record(torch.cuda.current_stream(tokens.device))
            for tensor in (tokens, together.pixels) if together is not None else (tokens,):
                tensor.record_stream(self._stream)
        future = self._executor.submit(self._decode, job, tokens, ready, together)
        self._decodings.append(_Decoding(job, tokens, future))

    def raise_failure(self) -> None:
        """Raise what the decoding of an earlier image raised."""
        for decoding in self._take_done():
            decoding.future.result()

    def settle(self) -> None:
        """Return when nothing is being decoded, however that ended."""
        wait([decoding.future for decoding in self._decodings])

    def take_out_of_memory(self) -> list[tuple[Job, torch.Tensor]]:
        """The earlier images for whose decoding there was too little memory: each job with its tokens. Raises what the
        decoding of another raised."""
        done = self._take_done()
        for decoding in done:
            if not decoding.ran_out_of_memory:
                decoding.future.result()
        return [(decoding.job, decoding.tokens) for decoding in done if decoding.ran_out_of_memory]

    def _take_done(self) -> list[_Decoding]:
        done = [decoding for decoding in self._decodings if decoding.future.done()]
        self._decodings = [decoding for decoding in self._decodings if decoding not in done]
        return done

    def decode_small(self, job: Job, tokens: torch.Tensor) -> None:
        """Decode in the least memory there is and hand the image on. Returns when that is done; raises what it
        raised."""
        self._executor.submit(self._on_stream, self._decode_pixels, job, tokens, None, SMALLEST_TILE).result()

    def close(self) -> None:
        self._executor.shutdown(wait=True)
        self.raise_failure()

    def _decode(
        self, job: Job, tokens: torch.Tensor, ready: torch.cuda.Event | None, together: DecodedTogether | None
    ) -> None:
        if ready is not None:
            ready.synchronize()  # on the host, so that the decode's time is not that of the steps queued before it
        try:
            self._on_stream(self._decode_pixels, job, tokens, together, self._tile(job.width, job.height))
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

    def _warm_up(self, latents: torch.Tensor) -> None:
        height, width = (side * self._vae.scale_factor for side in latents.shape[1:])
        with self._presence:
            self._vae.warm_up(latents[None], tile=self._tile(width, height))

    def _decode_pixels(
        self, job: Job, tokens: torch.Tensor, together: DecodedTogether | None, tile: int | None
    ) -> None:
        began = time.perf_counter()
        latents = self._unpack(job, tokens)
        if together is not None:
            began -= together.seconds
            pixels = together.pixels
        else:
            with self._presence:
                pixels = self._vae.decode_pixels(latents[None], tile=tile)[0]
        if self._on_image is not None:
            on_host = to_host(pixels)
            if self._stream is not None:
                self._stream.synchronize()
            rgb = on_host.numpy().tobytes()
            seconds = time.perf_counter() - began
            finite = bool(latents.isfinite().all())
            self._on_image(DecodedImage(job.job_id, job.width, job.height, rgb, seconds, finite))
        try:
            self._previews.learn(latents, pixels)
        except Exception as error:  # the image has been handed on, and must not be again
            if not is_out_of_memory(error):
                raise
            release_tensors(error)


class Decoding:
    """Has each finished image decoded where that is done in this mesh. `beside` and `previews`: of rank 0 alone."""

    def __init__(
        self,
        vae: VAEDecoder | None,
        config: ModelConfig,
        mesh: Mesh,
        device: torch.device,
        on_image: Callable[[DecodedImage], None] | None,
        *,
        memory: DecodeMemory,
        together: bool,
        presence: AbstractContextManager[None] | None,
    ) -> None:
        """vae: None on a rank that decodes nothing. together: whether all ranks decode an image whose rows they can
        divide. on_image, presence: as in `ImageDecoder`."""
        self._vae, self._config, self._world, self._device = vae, config, mesh.world, device
        self._memory, self._together = memory, together
        self.previews: PreviewMap | None = None
        self.beside: ImageDecoder | None = None
        if vae is not None and mesh.world.rank == 0:
            self.previews = PreviewMap(config.vae.z_dim, device)
            self.beside = ImageDecoder(
                vae, self.previews, device, on_image, unpack=self.unpack, tile=self.tile_side, presence=presence
            )

    def decode(self, state: JobState) -> None:
        """On rank 0 beside the steps that follow, or in turn with them by all ranks."""
        together = None
        if self._is_shared(state.job):
            assert self._vae is not None
            began = record_time(self._device)
            latents = self.unpack(state.job, state.latents)
            pixels = self._vae.decode_pixels(latents[None], group=self._world)[0]
            together = DecodedTogether(pixels, began, record_time(self._device))
        if self.beside is not None:
            self.beside.submit(state.job, state.latents, together)

    def warm_up(self, job: Job, latents: torch.Tensor) -> None:
        """Decode a job's latents, (z_dim, h, w), where images of its size are decoded."""
        if self._is_shared(job):
            assert self._vae is not None
            self._vae.warm_up(latents[None], group=self._world)
        elif self.beside is not None:
            self.beside.warm_up(latents)

    def draw_preview(self, job: Job, tokens: torch.Tensor) -> torch.Tensor | None:
        """A small picture of a job's tokens without noise, (height, width, 3) uint8, if it can be drawn yet."""
        assert self.previews is not None
        return self.previews.draw(self.unpack(job, tokens))

    def unpack(self, job: Job, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens of a job's image, (image tokens, in_channels), as latents, (z_dim, h, w)."""
        multiple = self._config.size_multiple
        return unpack_latents(tokens, job.height // multiple, job.width // multiple, self._config.patch_size)

    def tile_side(self, width: int, height: int) -> int | None:
        """The sides of the tiles that an image of this size is decoded in, in latent pixels; None for whole."""
        return tile_side(self._config, width, height, self._memory.bytes_per_element, self._memory.limit)

    def _is_shared(self, job: Job) -> bool:
        """Whether all ranks decode an image together: in turn with their steps, since two communicators must not be at
        work at once."""
        if not self._together or self.tile_side(job.width, job.height) is not None:
            return False
        return self._vae is not None and self._vae.divides(job.height // self._vae.scale_factor, self._world)
