"""One rank: its shard of the model, the state of the jobs in flight, and the execution of steps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from engine.checkpoint.weight_format import Weights
from engine.config.engine_config import EngineConfig
from engine.errors import LoraError, OutOfMemoryError
from engine.kernels.attention.choice import AttentionChoice
from engine.kernels.attention.plans import PlanSchedule
from engine.lora.adapters import Adapters
from engine.offload.device_memory import DeviceMemory
from engine.parallel.link import Link
from engine.parallel.mesh import Mesh
from engine.planning.step_memory import encode_bytes
from engine.rank.build import build_model
from engine.rank.denoiser import Denoiser, Velocities
from engine.rank.image_decoder import DecodedImage, Decoding
from engine.rank.job_state import JobStarter, JobState
from engine.rank.plan_building import PlanBuilder
from engine.rank.prompt_encoder import PromptEncoder
from engine.rank.recovery import Recovery
from engine.rank.step_handle import StepHandle
from engine.rank.warm_up import WarmUp
from engine.step import BuiltPlan, Job, Step

_logger = logging.getLogger(__name__)


class Rank:
    """Executes `Step`s on one device. Not thread-safe; only noise is drawn and images are decoded in threads of its
    own."""

    def __init__(
        self,
        config: EngineConfig,
        mesh: Mesh,
        device: torch.device,
        on_image: Callable[[DecodedImage], None] | None = None,
        weights: Weights | None = None,
        *,
        on_failed: Callable[[int, OutOfMemoryError], None] | None = None,
        local_ranks: int | None = None,
    ) -> None:
        """Load this rank's share of the checkpoint, or of `weights` that come from elsewhere.

        on_image is called on rank 0, from the decoding thread, for every image. on_failed is called by `execute` of the
        only rank with the id of a job that there is not enough memory for; None, or with several ranks: that is raised.
        local_ranks: how many of the ranks are on this machine, None for all. Raises `CheckpointError` if the checkpoint
        is damaged and `ArgumentError` if the mesh's sizes do not divide the model, or the device lacks what the config
        asks for.
        """
        model = build_model(config, mesh, device, weights, local_ranks)
        self._model = model
        self.mesh, self.device, self.dtype, self.config = mesh, device, model.dtype, model.config
        self.text_encoder, self.transformer, self.vae = model.text_encoder, model.transformer, model.vae
        self.attention, self.plan, self.offload = model.attention, model.plan, model.offload
        self.decode_memory, self.bytes_read = model.decode_memory, model.bytes_read
        self.link: Link | None = None  # known after warm-up, where there are several ranks
        self._plans: PlanBuilder | None = None  # where steps that are warmed up run on cuDNN's attention
        self._jobs: dict[int, JobState] = {}
        self._next_number = 0

        encoding = encode_bytes(self.config, mesh.tp.size, self.dtype.itemsize)
        self._memory = DeviceMemory(self.offload, device, model.sharing, encoding)
        self._adapters = Adapters(self.transformer, self.config, mesh.tp, device, self.dtype)
        # Matrices that ranks share make every layer of the text encoder wait for the other ranks' step before; and two
        # communicators would be at work at once. Where memory is to be saved, only one of encoding and step takes it.
        beside = mesh.tp.size == 1 and not model.saves_memory
        self._prompts = PromptEncoder(self.text_encoder, self.transformer, self._adapters, device, beside=beside)
        self._starter = JobStarter(self.config, self.transformer, self._prompts, self._adapters, device, self.dtype)
        self._decoding = Decoding(
            self.vae,
            self.config,
            mesh,
            device,
            on_image,
            memory=self.decode_memory,
            together=config.decodes_together,
            presence=self.offload.vae,
        )
        dit = self.config.transformer
        velocities = Velocities(dit, self.transformer, mesh, config.degrees, self._adapters, device)
        draw_preview = None if self._decoding.beside is None else self._decoding.draw_preview
        self._denoiser = Denoiser(velocities, draw_preview)
        self._recovery = Recovery(model, self._decoding, self._memory, on_failed)
        self._warm_up = WarmUp(
            model, self._prompts, self._starter, self._denoiser, self._decoding, self._memory, self._recovery
        )
        self._fit_encoding()

    def warm_up(self, sizes: Sequence[tuple[int, int]] = (), *, decodes: bool = True) -> None:
        """Do now, on a GPU, what would make the first requests slow: measure the attention backends, compile kernels,
        tune the decoder's convolutions, record graphs. In the thread that executes steps, and before the first.

        sizes: width and height of images to expect, rounded, besides the checkpoint's default. One that there is not
        memory for is left out. decodes: whether images will be decoded at all. A recording that fails is logged, and
        steps are launched kernel by kernel.
        """
        if self.device.type != "cuda":
            return
        self._warm_up.run(sizes, decodes=decodes)
        self._plans, self.link = self._warm_up.plans, self._warm_up.link
        self._fit_encoding()

    def execute(self, step: Step) -> StepHandle:
        """Start a step. On a GPU the work is only queued when this returns; `wait` for it.

        Raises whatever went wrong, also in the decoding of an earlier image; the group is lost then, since the other
        ranks wait in a collective that this one never reached.
        """
        if step.number != self._next_number:
            raise RuntimeError(f"step {step.number} came where step {self._next_number} was due")
        self._next_number += 1
        if self._plans is not None:
            self._plans.worked(images=len(step.start))
        self._recovery.check_decoder()
        for adapter in step.load:  # before the clock starts: neither encoding nor denoising
            try:
                self._adapters.load(adapter)
            except LoraError as error:  # it may be about a file beside the adapter's
                raise LoraError(error.message, parameter=adapter.path) from None
        denoise = [job_id for job_id in step.denoise if job_id not in self._recovery.failed]
        pending = StepHandle(self.device)
        with torch.inference_mode():
            if not self._advance(step.start, denoise, pending):
                pending = self._recovery.one_by_one(step.start, denoise, self._jobs, self._advance)
            for job_id in step.decode:
                if job_id not in self._recovery.failed:
                    self._decoding.decode(self._jobs.pop(job_id))
        for job_id in step.release:
            self._jobs.pop(job_id, None)
        self._recovery.failed.difference_update(step.decode, step.release)
        for adapter_id in step.unload:
            self._adapters.unload(adapter_id)
            self._starter.forget(adapter_id)
        if self.offload.dit is not None and not self._jobs:
            self.offload.dit.drop()
        return pending

    def _advance(self, start: Sequence[Job], denoise: Sequence[int], pending: StepHandle) -> bool:
        """Start jobs and denoise some, what comes of it going to `pending`. False if there was too little memory, where
        that is not raised: then nothing has changed, and what can be freed is free."""
        try:
            if self.offload.dit is not None and (start or denoise):
                self.offload.dit.bring()
            if start:
                pending.encoded_tokens = self._start(start)
            pending.mark()
            if denoise:
                pending.previews = self._denoiser.step([self._jobs[job_id] for job_id in denoise])
            pending.mark()
            return True
        except Exception as error:
            if not self._recovery.survives(error):
                raise
            _logger.warning("out of memory in a step of %d images: %s", len(denoise), error)
        for job in start:
            self._jobs.pop(job.job_id, None)
        self._recovery.free_memory()
        return False

    def _start(self, jobs: Sequence[Job]) -> int:
        """Returns how many prompt tokens were encoded."""
        states, encoded_tokens = self._starter.start(jobs)
        self._jobs |= {state.job.job_id: state for state in states}
        return encoded_tokens

    def idle_wait_s(self) -> float | None:
        """Seconds without a step after which `use_idle_time` has something to do; None if it has not."""
        return None if self._plans is None or self._jobs else self._plans.wait_s()

    def use_idle_time(self) -> BuiltPlan | None:
        """Build an attention plan, in the thread that executes steps: up to half a second in which none can begin."""
        return None if self._plans is None else self._plans.build_next()

    def build_attention_plans(self) -> int:
        """Build all that steps had no use of so far, as before anybody waits for an image. Returns how many."""
        return 0 if self._plans is None else self._plans.build_all()

    @property
    def attention_choice(self) -> AttentionChoice:
        """The backends of the DiT's attention, and why."""
        return self._model.attention_choice

    @property
    def attention_plans(self) -> PlanSchedule | None:
        """What is known of them, where attention needs any."""
        return None if self._plans is None else self._plans.schedule

    @property
    def has_step_graphs(self) -> bool:
        """Whether steps that are small enough are replays of CUDA graphs."""
        return self._denoiser.velocities.graphs is not None

    def raise_failure(self) -> None:
        """Raise what went wrong in the decoding of an earlier image, if something did."""
        if self._decoding.beside is not None:
            self._decoding.beside.raise_failure()

    def latents(self, job_id: int) -> torch.Tensor:
        """The latents of a job in flight as tokens, (image tokens, in_channels) float32."""
        return self._jobs[job_id].latents

    def memory(self) -> dict[str, int]:
        """Bytes: `weights` of this rank on its device, now and at most (`peak_weights`), `host_weights` in host memory,
        `adapters`, what is `free` on the device for steps, beside the encoding of prompts where that is done beside
        them and a reserve, where that is known, and the `decode_limit` above which images are decoded in tiles, where
        there is one."""
        return self._memory.sizes(self._adapters.bytes, encodes_beside=self._prompts.beside_steps)

    def _fit_encoding(self) -> None:
        """Encode prompts in turn with steps where both at once would leave no room for an image of the default size."""
        if self._prompts.beside_steps and not self._memory.has_room_to_encode_beside():
            _logger.info("prompts are encoded between steps: beside them there is too little memory")
            self._prompts.encode_in_turn()

    def describe_plan(self) -> tuple[str, ...]:
        """What lies where, for people, if the config says anything about it."""
        return tuple(self.plan.describe()) if self._model.saves_memory else ()

    def close(self) -> None:
        """Wait until every image has been decoded. Raises what went wrong there."""
        self._starter.close()
        if self._decoding.beside is not None:
            try:
                self._decoding.beside.settle()
                self._recovery.check_decoder()
            finally:
                self._decoding.beside.close()
        self.offload.close()
