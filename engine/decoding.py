"""Latents to pixels, beside the denoising of other jobs."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from engine.model import VAEDecoder
from engine.preview import PreviewMap
from engine.step import Job


@dataclass(frozen=True)
class DecodedImage:
    """A finished image: `rgb` is height · width · 3 bytes. `decode_s` is what the decoder took."""

    job_id: int
    width: int
    height: int
    rgb: bytes
    decode_s: float


class ImageDecoder:
    """Runs the VAE in a thread (and on a GPU in a stream) of its own, so that other jobs go on denoising."""

    def __init__(
        self,
        vae: VAEDecoder,
        previews: PreviewMap,
        device: torch.device,
        on_image: Callable[[DecodedImage], None] | None,
    ) -> None:
        self._vae, self._previews, self._on_image = vae, previews, on_image
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="vae")
        self._futures: list[Future[None]] = []
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def submit(self, job: Job, latents: torch.Tensor) -> None:
        ready = torch.cuda.current_stream(latents.device).record_event() if self._stream is not None else None
        self._futures.append(self._executor.submit(self._run, lambda: self._decode(job, latents), latents, ready))

    def warm_up(self, latents: torch.Tensor) -> None:
        """Decode (z_dim, h, w) latents that nobody asked for, so that images of this size find everything ready."""
        ready = torch.cuda.current_stream(latents.device).record_event() if self._stream is not None else None
        self._executor.submit(self._run, lambda: self._vae.decode_pixels(latents[None]), latents, ready).result()

    def raise_failure(self) -> None:
        """Raise what the decoding of an earlier image raised."""
        done = [future for future in self._futures if future.done()]
        self._futures = [future for future in self._futures if not future.done()]
        for future in done:
            future.result()

    def close(self) -> None:
        self._executor.shutdown(wait=True)
        self.raise_failure()

    def _run(self, work: Callable[[], object], latents: torch.Tensor, ready: torch.cuda.Event | None) -> None:
        """In this thread's stream, once `latents` are `ready`."""
        with torch.inference_mode():
            if self._stream is not None and ready is not None:
                with torch.cuda.stream(self._stream):
                    self._stream.wait_event(ready)
                    latents.record_stream(self._stream)
                    work()
            else:
                work()

    def _decode(self, job: Job, latents: torch.Tensor) -> None:
        began = time.perf_counter()
        pixels = self._vae.decode_pixels(latents[None])[0]
        if self._on_image is not None:
            rgb = pixels.cpu().numpy().tobytes()
            self._on_image(DecodedImage(job.job_id, job.width, job.height, rgb, time.perf_counter() - began))
        self._previews.learn(latents, pixels)
        if self._stream is not None:
            self._stream.synchronize()  # before another stream draws with what was learned
