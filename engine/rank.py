"""One rank: its shard of the model, the state of the jobs in flight, and the execution of steps."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch

from engine.batch import Layout, Segment
from engine.checkpoint import CheckpointFiles
from engine.checkpoint.load import FP8_MATRICES, Weights, load_weights
from engine.config import EngineConfig, ModelConfig
from engine.kernels.attention import GatedAttentionKernel
from engine.kernels.packing import Packing
from engine.kernels.rope import image_rotations
from engine.memory import ENCODE_AT_ONCE
from engine.model import TextEncoder, Transformer, VAEDecoder
from engine.model.transformer import TimeModulation
from engine.parallel import Group
from engine.parallel.device import check_quantization, free_bytes, pick_dtype, ranks_on_device, to_device, to_host
from engine.preview import PreviewMap
from engine.prompt import PREFIX_TOKENS
from engine.sampling import default_mu, draw_noise, guide, make_sigmas, unpack_latents
from engine.step import Job, Step, StepTimes

# Text features kept for prompts that come again (several images of a request, the empty negative prompt): 200 MB at
# the real size in bfloat16.
_TEXT_CACHE_TOKENS = 16384
# Schedules, batch layouts and image grids kept: a schedule of 52 steps is 8 MB at the real size, a layout 4 MB.
_CACHED_SHAPES = 8


@dataclass(frozen=True)
class DecodedImage:
    """A finished image: `rgb` is height · width · 3 bytes. `decode_s` is what the decoder took."""

    job_id: int
    width: int
    height: int
    rgb: bytes
    decode_s: float


@dataclass(frozen=True)
class Preview:
    """What a job's image may become, after `step` of its steps. pixels: (height, width, 3) uint8 in host memory."""

    job_id: int
    step: int
    pixels: torch.Tensor


@dataclass(frozen=True)
class _Schedule:
    sigmas: tuple[float, ...]
    modulation: TimeModulation


@dataclass
class _JobState:
    job: Job
    grid: tuple[int, int]
    latents: torch.Tensor  # (image tokens, in_channels) float32
    texts: tuple[torch.Tensor, ...]  # the prompt's features and, when guided, the negative prompt's
    schedule: _Schedule
    step: int = 0

    @property
    def preview_is_due(self) -> bool:
        every = self.job.preview_every
        return every > 0 and self.step % every == 0 and self.step < self.job.steps


class Rank:
    """Executes `Step`s on one device. Not thread-safe; only images are decoded in a thread of the rank's own."""

    def __init__(
        self,
        config: EngineConfig,
        group: Group,
        device: torch.device,
        on_image: Callable[[DecodedImage], None] | None = None,
        weights: Weights | None = None,
    ) -> None:
        """Load this rank's share of the checkpoint, or of `weights` that come from elsewhere.

        on_image is called on rank 0, from the decoding thread, for every image. Raises `CheckpointError` if the
        checkpoint is damaged and `ArgumentError` if the group's size does not divide the model, or the device lacks
        what the config asks for.
        """
        self.group, self.device = group, device
        self.dtype = pick_dtype(config, device)
        check_quantization(config, device)
        if weights is None:
            folder = config.checkpoint_folder()
            weights = CheckpointFiles(folder, ModelConfig.from_folder(folder, config.variant))
        self.config = weights.config
        self.config.check_tp(group.size)
        self.attention = GatedAttentionKernel()

        with torch.device("meta"):
            self.text_encoder = TextEncoder(self.config, group)
            self.transformer = Transformer(self.config.transformer, group, self.attention)
            self.vae = VAEDecoder(self.config.vae) if group.rank == 0 else None
        modules = {"text_encoder": self.text_encoder, "transformer": self.transformer, "vae": self.vae}
        for component, module in modules.items():
            if module is not None:
                load_weights(
                    module,
                    weights,
                    component,
                    rank=group.rank,
                    size=group.size,
                    device=device,
                    dtype=self.dtype,
                    fp8=FP8_MATRICES if config.quantization == "fp8" else (),
                )
        self.bytes_read = weights.bytes_read
        weights.close()

        self._jobs: dict[int, _JobState] = {}
        self._next_number = 0
        self._texts: OrderedDict[tuple[int, ...], torch.Tensor] = OrderedDict()
        self._schedule = lru_cache(maxsize=_CACHED_SHAPES)(self._make_schedule)
        self._layout = lru_cache(maxsize=_CACHED_SHAPES)(self._make_layout)
        self._grid = lru_cache(maxsize=_CACHED_SHAPES)(self._make_grid)
        self._decoder: _ImageDecoder | None = None
        if self.vae is not None:
            self._previews = PreviewMap(self.config.vae.z_dim, device)
            self._decoder = _ImageDecoder(self.vae, self._previews, device, on_image)

    def execute(self, step: Step) -> PendingStep:
        """Start a step. On a GPU the work is only queued when this returns; `wait` for it.

        Raises whatever went wrong, also in the decoding of an earlier image; the group is lost then, since the other
        ranks wait in a collective that this one never reached.
        """
        if step.number != self._next_number:
            raise RuntimeError(f"step {step.number} came where step {self._next_number} was due")
        self._next_number += 1
        if self._decoder is not None:
            self._decoder.raise_failure()
        pending = PendingStep(self.device)
        with torch.inference_mode():
            if step.start:
                pending.encoded_tokens = self._start(step.start)
            pending.mark()
            if step.denoise:
                pending.previews = self._denoise([self._jobs[job_id] for job_id in step.denoise])
            pending.mark()
            for job_id in step.decode:
                state = self._jobs.pop(job_id)
                if self._decoder is not None:
                    latents = unpack_latents(state.latents, *state.grid, self.config.patch_size)
                    self._decoder.submit(state.job, latents)
        for job_id in step.release:
            self._jobs.pop(job_id, None)
        return pending

    def latents(self, job_id: int) -> torch.Tensor:
        """The latents of a job in flight as tokens, (image tokens, in_channels) float32."""
        return self._jobs[job_id].latents

    def memory(self) -> dict[str, int]:
        """Bytes: `weights` that this rank holds, and what is `free` for steps on its device, where that is known."""
        modules = [module for module in (self.text_encoder, self.transformer, self.vae) if module is not None]
        weights = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
        free = free_bytes(self.device)
        return (
            {"weights": weights}
            if free is None
            else {"weights": weights, "free": free // ranks_on_device(self.device, self.group.size)}
        )

    def close(self) -> None:
        """Wait until every image has been decoded. Raises what went wrong there."""
        if self._decoder is not None:
            self._decoder.close()

    # ---- starting jobs

    def _start(self, jobs: tuple[Job, ...]) -> int:
        """Returns how many prompt tokens were encoded."""
        texts, encoded_tokens = self._encode_texts([ids for job in jobs for ids in job.prompts])
        for job in jobs:
            multiple = self.config.size_multiple
            tokens = self.config.image_tokens(job.width, job.height)
            mu = default_mu(self.config, tokens) if job.mu is None else job.mu
            noise = draw_noise(job.seed, job.width, job.height, self.config, self.dtype)
            self._jobs[job.job_id] = _JobState(
                job=job,
                grid=(job.height // multiple, job.width // multiple),
                latents=to_device(noise, self.device),
                texts=tuple(texts[ids] for ids in job.prompts),
                schedule=self._schedule(job.steps, mu),
            )
        return encoded_tokens

    def _encode_texts(self, prompts: list[tuple[int, ...]]) -> tuple[dict[tuple[int, ...], torch.Tensor], int]:
        """Text features (text tokens, width) of each distinct prompt; new ones are encoded some at a time, packed.

        Also returns the tokens of the new ones.
        """
        found = {ids: self._texts[ids] for ids in prompts if ids in self._texts}
        missing = [ids for ids in dict.fromkeys(prompts) if ids not in found]
        for new in _chunks(missing, ENCODE_AT_ONCE):
            found.update(zip(new, self._encode_packed(new), strict=True))
        for ids, features in found.items():
            self._texts[ids] = features
            self._texts.move_to_end(ids)
        kept = sum(features.shape[0] for features in self._texts.values())
        while len(self._texts) > 1 and kept > _TEXT_CACHE_TOKENS:
            kept -= self._texts.popitem(last=False)[1].shape[0]
        return found, sum(map(len, missing))

    def _encode_packed(self, prompts: list[tuple[int, ...]]) -> list[torch.Tensor]:
        packed = to_device(torch.tensor([token for ids in prompts for token in ids]), self.device)
        packing = Packing([len(ids) for ids in prompts], self.device)
        states = self.text_encoder(packed, packing)
        kept = torch.cat([states[start + PREFIX_TOKENS : stop] for start, stop in pairwise(packing.bounds)])
        lengths = [len(ids) - PREFIX_TOKENS for ids in prompts]
        features = self.transformer.encode_text(kept, Packing(lengths, self.device))
        # copies, so that one cached prompt does not keep the whole batch it came in alive
        return [part.clone() for part in features.split(lengths)]

    def _make_schedule(self, steps: int, mu: float) -> _Schedule:
        sigmas = make_sigmas(steps, mu)
        scale = self.config.schedule.num_train_timesteps
        timesteps = sigmas[:-1] * scale / scale  # as the references compute it, to the last bit
        return _Schedule(tuple(sigmas.tolist()), self.transformer.encode_timesteps(to_device(timesteps, self.device)))

    # ---- denoising

    def _denoise(self, states: list[_JobState]) -> list[Preview]:
        """One Euler step of every job, all of their segments in one forward. Returns the previews that are due."""
        segments, text, rows = [], [], []
        for image, state in enumerate(states):
            for features in state.texts:
                segments.append(Segment(image, features.shape[0], *state.grid))
                text.append(features)
                rows.append(state)
        modulation = TimeModulation(
            block=torch.stack([state.schedule.modulation.block[state.step] for state in rows]),
            final=torch.stack([state.schedule.modulation.final[state.step] for state in rows]),
        )
        layout = self._layout(tuple(segments))
        velocities = self.transformer(text, [state.latents for state in states], modulation, layout)

        previews = []
        parts = iter(velocities.split([segment.image_tokens for segment in segments]))
        for state in states:
            velocity = next(parts)
            if len(state.texts) == 2:
                velocity = guide(velocity, next(parts), state.job.guidance)
            sigma, sigma_next = state.schedule.sigmas[state.step : state.step + 2]
            state.latents = state.latents.add(velocity, alpha=sigma_next - sigma)
            state.step += 1
            if self._decoder is not None and state.preview_is_due:
                clean = state.latents.sub(velocity, alpha=sigma_next)  # where this velocity leads
                pixels = self._previews.draw(unpack_latents(clean, *state.grid, self.config.patch_size))
                if pixels is not None:
                    previews.append(Preview(state.job.job_id, state.step, to_host(pixels)))
        return previews

    def _make_layout(self, segments: tuple[Segment, ...]) -> Layout:
        return Layout(segments, [self._grid(segment.grid_height, segment.grid_width) for segment in segments])

    def _make_grid(self, height: int, width: int) -> torch.Tensor:
        dit = self.config.transformer
        return to_device(image_rotations(height, width, dit.axes_dims_rope, dit.rope_theta), self.device)


class PendingStep:
    """A step that has been started, with marks before, between and after its two parts.

    `previews` of rank 0 have their pixels once `wait` has returned.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._times: list[float] = []
        self._events: list[torch.cuda.Event] = []
        self.previews: list[Preview] = []
        self.encoded_tokens = 0
        self.mark()

    def mark(self) -> None:
        """The device has got this far, now or, on a GPU, when its queue has been worked off."""
        if self._on_gpu:
            self._events.append(torch.cuda.Event(enable_timing=True))
            self._events[-1].record(torch.cuda.current_stream(self._device))
        else:
            self._times.append(time.perf_counter())

    def wait(self) -> StepTimes:
        """Return when the device has finished the step."""
        if self._on_gpu:
            began, encoded, done = self._events
            done.synchronize()
            seconds = began.elapsed_time(encoded) / 1e3, encoded.elapsed_time(done) / 1e3
        else:
            began_s, encoded_s, done_s = self._times
            seconds = encoded_s - began_s, done_s - encoded_s
        return StepTimes(*seconds, self.encoded_tokens)


class _ImageDecoder:
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
        self._futures.append(self._executor.submit(self._decode, job, latents, ready))

    def raise_failure(self) -> None:
        """Raise what the decoding of an earlier image raised."""
        done = [future for future in self._futures if future.done()]
        self._futures = [future for future in self._futures if not future.done()]
        for future in done:
            future.result()

    def close(self) -> None:
        self._executor.shutdown(wait=True)
        self.raise_failure()

    def _decode(self, job: Job, latents: torch.Tensor, ready: torch.cuda.Event | None) -> None:
        began = time.perf_counter()
        with torch.inference_mode():
            if self._stream is not None and ready is not None:
                with torch.cuda.stream(self._stream):
                    self._stream.wait_event(ready)
                    latents.record_stream(self._stream)
                    self._decode_pixels(job, latents, began)
            else:
                self._decode_pixels(job, latents, began)

    def _decode_pixels(self, job: Job, latents: torch.Tensor, began: float) -> None:
        pixels = self._vae.decode_pixels(latents[None])[0]
        if self._on_image is not None:
            rgb = pixels.cpu().numpy().tobytes()
            self._on_image(DecodedImage(job.job_id, job.width, job.height, rgb, time.perf_counter() - began))
        self._previews.learn(latents, pixels)
        if self._stream is not None:
            self._stream.synchronize()  # before another stream draws with what was learned


def _chunks(prompts: list[tuple[int, ...]], most_tokens: int) -> Iterator[list[tuple[int, ...]]]:
    """The prompts in order, as many at a time as have at most so many tokens; one that has more goes alone."""
    chunk: list[tuple[int, ...]] = []
    for ids in prompts:
        if chunk and sum(map(len, chunk)) + len(ids) > most_tokens:
            yield chunk
            chunk = []
        chunk.append(ids)
    if chunk:
        yield chunk
