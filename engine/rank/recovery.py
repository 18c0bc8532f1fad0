"""What the only rank does when its device runs out of memory: lose nothing but an image that does not fit by itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from engine.config.chat_template import PREFIX_TOKENS
from engine.device.devices import is_out_of_memory, release_tensors
from engine.errors import OutOfMemoryError
from engine.pictures.picture_encoder import PictureEncoder
from engine.pictures.pixels import Pixels
from engine.planning.step_memory import batch_bytes, cache_bytes, decode_bytes, picture_encode_bytes
from engine.rank.build import RankModel
from engine.rank.image_decoder import ImageDecoder
from engine.rank.job_state import JobState
from engine.rank.step_handle import StepHandle
from engine.step import Job, Picture

_logger = logging.getLogger(__name__)
# Starts jobs and denoises those of some ids, for a step's handle; false if there was too little memory.
Advance = Callable[[Sequence[Job], Sequence[int], StepHandle], bool]


class Recovery:
    """Frees what can be freed, does a step's work job by job, decodes in small tiles, and gives up what fails alone."""

    def __init__(
        self, model: RankModel, decoder: ImageDecoder, on_failed: Callable[[int, OutOfMemoryError], None] | None
    ) -> None:
        """on_failed: called with the id of a job that is given up. None, or with several ranks, which would wait for
        this one in a collective: nothing is recovered from."""
        self._model, self._decoder = model, decoder
        self._on_failed = on_failed if model.mesh.world.size == 1 else None
        self.failed: set[int] = set()  # jobs that a step on its way may still name
        self.lost: set[int] = set()  # pictures that later jobs may begin from

    def survives(self, error: BaseException) -> bool:
        """Whether this rank goes on after an error; then the tensors of the forward that it broke off are let go."""
        if self._on_failed is None or not is_out_of_memory(error):
            return False
        release_tensors(error)
        return True

    def free_memory(self) -> None:
        """Wait for what is under way after a forward was broken off, and give back what nobody uses."""
        device = self._model.device
        self._decoder.settle()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self._model.offload.rewind()
        torch.cuda.empty_cache()  # nothing without CUDA

    def one_by_one(
        self, start: Sequence[Job], denoise: Sequence[int], jobs: dict[int, JobState], advance: Advance
    ) -> StepHandle:
        """Do job by job what there is no memory for together. A job that has too little even alone has failed, and is
        taken out of `jobs`. Returns the step's handle."""
        model = self._model
        handle = StepHandle(model.device, one_by_one=True)
        handle.record()
        starts = {job.job_id: job for job in start}
        for job_id in dict.fromkeys([*starts, *denoise]):
            begins = [starts[job_id]] if job_id in starts else []
            part = StepHandle(model.device)
            if advance(begins, [job_id] if job_id in denoise else [], part):
                handle.encoded_tokens += part.encoded_tokens
                handle.previews += part.previews
                handle.blocks_run += part.blocks_run
                continue
            job = begins[0] if begins else jobs.pop(job_id).job
            self.failed.add(job_id)
            tokens = model.config.image_tokens(job.width, job.height)
            lengths = [len(ids) - PREFIX_TOKENS + tokens for ids in job.prompts]
            ranks = model.engine.degrees, model.dtype.itemsize
            needed = batch_bytes(model.config, lengths, *ranks)
            needed += cache_bytes(model.config, job.cache, lengths, tokens, *ranks)
            self._fail(job, "a step", max(needed, self._model.offload.encoding if begins else 0))
        handle.record()
        return handle

    def encode(self, pictures: PictureEncoder, picture: Picture, pixels: Pixels | None) -> None:
        """Encode a picture, again if there is too little memory for it beside a step: alone and in small tiles. If that
        is too much, the picture is lost."""
        try:
            return pictures.encode(picture, pixels)
        except Exception as error:
            if not self.survives(error):
                raise
            _logger.warning("out of memory in encoding %d × %d: %s", picture.width, picture.height, error)
        self.free_memory()
        try:
            pictures.encode(picture, pixels, small=True)
        except Exception as error:
            if not self.survives(error):
                raise
            _logger.warning("out of memory in encoding %d × %d in tiles: %s", picture.width, picture.height, error)
            self.free_memory()
            self.lost.add(picture.picture_id)

    def gives_up(self, job: Job) -> bool:
        """Whether a job cannot begin, since its picture is lost. It has failed then."""
        if job.picture is None or job.picture.picture_id not in self.lost:
            return False
        self.failed.add(job.job_id)
        self._fail(job, "encoding its picture", self._in_small_tiles(job, picture_encode_bytes))
        return True

    def check_decoder(self) -> None:
        """Decode again what there was too little memory for in an earlier step; raise what else went wrong there."""
        while failed := self._decoder.take_failed():  # another may fail while the first is decoded again
            for *_, error in failed:
                if not self.survives(error):
                    raise error
            for job, tokens, _ in failed:
                self._decode_small(job, tokens)

    def _decode_small(self, job: Job, tokens: torch.Tensor) -> None:
        """Decode an image again that there was too little memory for beside a step."""
        self.free_memory()
        try:
            self._decoder.decode_small(job, tokens)
        except Exception as error:
            if not self.survives(error):
                raise
            _logger.warning("out of memory in decoding %d × %d in small tiles: %s", job.width, job.height, error)
            self._fail(job, "decoding", self._in_small_tiles(job, decode_bytes))

    def _in_small_tiles(self, job: Job, reckon: Callable[..., int]) -> int:
        """Reckon the bytes that decoding an image, or encoding its picture, takes at least."""
        element = self._model.decode_memory.bytes_per_element
        return reckon(self._model.config, job.width, job.height, element, 0)

    def _fail(self, job: Job, what: str, needed: int) -> None:
        """Give a job up that had the device to itself. needed: bytes."""
        assert self._on_failed is not None
        free = self._model.offload.left()
        left = "" if free is None else f", and {free / 1e9:.1f} GB are free"
        where = self._model.device
        message = f"the image of {job.width} × {job.height} with seed {job.seed} ran out of memory on {where}: "
        self._on_failed(job.job_id, OutOfMemoryError(f"{message}{what} needs about {needed / 1e9:.1f} GB{left}"))
