"""One rank: its share of the model, the jobs in flight, and the execution of steps."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch

from engine.checkpoint.weight_format import Weights
from engine.config.engine_config import EngineConfig
from engine.device.timing import DeviceTime, record_time
from engine.errors import LoraError, OutOfMemoryError
from engine.lora.adapters import Adapters
from engine.parallel.mesh import Mesh
from engine.pictures.picture_encoder import PictureEncoder
from engine.pictures.pixels import Pixels
from engine.rank.build import RankModel
from engine.rank.denoiser import Denoiser
from engine.rank.image_decoder import DecodedImage, ImageDecoder
from engine.rank.job_state import JobStarter, JobState
from engine.rank.plan_building import PlanBuilder
from engine.rank.prompt_encoder import PromptEncoder
from engine.rank.recovery import Recovery
from engine.rank.step_handle import StepHandle
from engine.step import BuiltPlan, Job, Picture, Step

_logger = logging.getLogger(__name__)


class Rank:
    """Executes `Step`s on one device. Not thread-safe; of its own threads one draws noise and one decodes images.

    model: what was built. jobs: those in flight, by id. What `warm_up` leaves: `plans`, where attention is cuDNN's, and
    `link`, where there are several ranks. The other attributes are what steps are executed by.
    """

    def __init__(
        self,
        config: EngineConfig,
        mesh: Mesh,
        device: torch.device,
        on_image: Callable[[DecodedImage], None] | None = None,
        weights: Weights | None = None,
        *,
        on_failed: Callable[[int, OutOfMemoryError], None] | None = None,
        on_read: Callable[[int, int], None] = lambda done, total: None,
        local_ranks: int | None = None,
    ) -> None:
        """Load this rank's share of the checkpoint, or of `weights` that come from elsewhere.

        on_image is called on rank 0, from the decoding thread, for every image. on_failed is called by `execute` of a
        single rank with the id of a job that has too little memory; with several ranks, or without on_failed, the error
        is raised. on_read is told several times a second how many bytes of the weights have been read, and of how many,
        from none to all. local_ranks: how many of the ranks are on this machine, None for all. Raises `CheckpointError`
        if the checkpoint is damaged, `ArgumentError` if the mesh's sizes do not divide the model, or the device lacks
        what the config asks for, and `LaunchError` if there is too little memory for the weights.
        """
        self.model = model = RankModel(config, mesh, device, weights, local_ranks, on_read)
        self.adapters = Adapters(model.transformer, model.config, mesh.tp, device, model.dtype)
        # Under tensor parallelism each layer of the text encoder would wait until the other ranks have done the step
        # before, with two communicators in use at once. To save memory, encoding and steps must not overlap either.
        self.prompts = PromptEncoder(model, self.adapters, beside=mesh.tp.size == 1 and not model.saves_memory)
        self.pictures = PictureEncoder(
            model.vae_encoder,
            model.config,
            mesh.world,
            device,
            on_device=model.offload.vae_encoder,
            memory=model.decode_memory,
            together=config.decodes_together,
            beside=mesh.world.size == 1 and not model.saves_memory,
        )
        self.starter = JobStarter(model, self.prompts, self.adapters, self.pictures)
        self.decoder = ImageDecoder(model, on_image)
        self.denoiser = Denoiser(model, self.adapters, self.decoder.draw_preview if mesh.world.rank == 0 else None)
        self.recovery = Recovery(model, self.decoder, on_failed)
        self.plans: PlanBuilder | None = None
        self.link: tuple[float, float] | None = None  # as `measure_link` returns it
        self.jobs: dict[int, JobState] = {}
        self._next_number = 0
        self.fit_encoding()

    def execute(self, step: Step, pixels: Mapping[int, Pixels] = MappingProxyType({})) -> StepHandle:
        """Start a step. On a GPU the work is only queued when this returns; `wait` for it.

        pixels: on rank 0 those of the pictures that the step encodes, by id.

        Raises whatever went wrong, such as `LoraError` in loading an adapter, also in the decoding of an earlier image;
        the group is lost then, since the other ranks wait in a collective that this one never reached.
        """
        if step.number != self._next_number:
            raise RuntimeError(f"step {step.number} came where step {self._next_number} was due")
        self._next_number += 1
        if self.plans is not None:
            self.plans.worked(images=len(step.start))
        self.recovery.check_decoder()
        for adapter in step.load:  # before the clock starts: neither encoding nor denoising
            try:
                self.adapters.load(adapter)
            except LoraError as error:  # it may be about a file beside the adapter's
                raise LoraError(error.message, parameter=adapter.path) from None
        began = time.perf_counter()
        reach = self.model.reach if any(job.explain for job in step.start) else None
        reach_s = time.perf_counter() - began
        with torch.inference_mode():
            pictures = self._encode_pictures(step.encode, pixels) if step.encode else None
            start = [job for job in step.start if not self.recovery.gives_up(job)]
            denoise = [job_id for job_id in step.denoise if job_id not in self.recovery.failed]
            handle = StepHandle(self.model.device)
            if not self._advance(start, denoise, handle):
                handle = self.recovery.one_by_one(start, denoise, self.jobs, self._advance)
            for job_id in step.decode:
                if job_id not in self.recovery.failed:
                    self.decoder.decode(self.jobs.pop(job_id))
        for job_id in step.release:
            self.jobs.pop(job_id, None)
        self.recovery.failed.difference_update(step.decode, step.release)
        if step.forget:
            self.pictures.forget(step.forget)
            self.recovery.lost.difference_update(step.forget)
        for adapter_id in step.unload:
            self.adapters.unload(adapter_id)
            self.starter.forget(adapter_id)
        if not self.jobs:
            self.model.offload.dit.drop()
        if pictures is not None:
            handle.pictures, handle.encoded_pixels = pictures, sum(each.width * each.height for each in step.encode)
        if reach is not None:
            handle.reach, handle.reach_s = reach, reach_s
        return handle

    def _encode_pictures(
        self, pictures: Sequence[Picture], pixels: Mapping[int, Pixels]
    ) -> tuple[DeviceTime, DeviceTime]:
        """Encode pictures for the jobs that begin from them. Returns when that began and ended."""
        began = record_time(self.model.device, awaited=True)
        for picture in pictures:
            self.recovery.encode(self.pictures, picture, pixels.get(picture.picture_id))
        return began, record_time(self.model.device, awaited=True)

    def _advance(self, start: Sequence[Job], denoise: Sequence[int], handle: StepHandle) -> bool:
        """Start jobs and denoise those with the given ids, noting times and previews in `handle`. False if there was
        too little memory, where that is not raised: then nothing has changed, and what can be freed is free."""
        try:
            if denoise or any(job.steps for job in start):
                self.model.offload.dit.bring()
            if start:
                states, handle.encoded_tokens = self.starter.start(start)
                self.jobs |= {state.job.job_id: state for state in states}
            handle.record()
            if denoise:
                handle.previews = self.denoiser.step([self.jobs[job_id] for job_id in denoise])
                handle.graph, handle.blocks_run = self.denoiser.replayed, self.denoiser.blocks_run
            handle.record()
            return True
        except Exception as error:
            if not self.recovery.survives(error):
                raise
            _logger.warning("out of memory in a step of %d images: %s", len(denoise), error)
        for job in start:
            self.jobs.pop(job.job_id, None)
        self.recovery.free_memory()
        return False

    def idle_wait_s(self) -> float | None:
        """Say after how many seconds without a step `use_idle_time` has something to do; None if it has nothing."""
        return None if self.plans is None or self.jobs else self.plans.wait_s()

    def use_idle_time(self) -> BuiltPlan | None:
        """Build an attention plan, in the thread that executes steps: up to half a second in which none can begin."""
        return None if self.plans is None else self.plans.build_next()

    def memory(self) -> dict[str, int]:
        """Count bytes: `weights` of this rank on its device, now and at most (`peak_weights`), `host_weights` in host
        memory, `adapters`; where there is one, the `decode_limit` above which images are decoded in tiles; where it is
        known, what is `free` on the device for steps, without a reserve and what encoding takes beside them."""
        offload = self.model.offload
        sizes = {
            "weights": offload.ledger.resident,
            "peak_weights": offload.ledger.peak,
            "host_weights": offload.host_bytes,
            "adapters": self.adapters.bytes,
            "decode_limit": offload.plan.decode_limit,
            "free": offload.free_for_steps(encodes_beside=self.prompts.beside_steps),
        }
        return {name: size for name, size in sizes.items() if size is not None}

    def fit_encoding(self) -> None:
        """Encode prompts in turn with steps where both at once would leave no room for an image of the default size,
        and so pictures that are too large for what room there is then."""
        room = self.model.offload.room_beside()
        if self.prompts.beside_steps and room is not None and room < 0:
            _logger.info("prompts are encoded between steps: beside them there is too little memory")
            self.prompts.encode_in_turn()
        self.pictures.room = room

    def close(self) -> None:
        """Wait until every image has been decoded. Raises what went wrong there."""
        self.starter.close()
        try:
            self.decoder.settle()
            self.recovery.check_decoder()
        finally:
            self.decoder.close()
        self.model.offload.close()
