"""What a rank does before the first step, on a GPU: measure attention, try images, record graphs."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from engine.config.chat_template import PREFIX_TOKENS
from engine.config.engine_config import DIT, DIT_LAYERWISE, TEXT_ENCODER
from engine.parallel.link import measure_link
from engine.planning.step_memory import batch_bytes, decode_bytes, picture_encode_bytes
from engine.rank.build import TYPICAL_PROMPT_TOKENS
from engine.rank.cuda_graphs import PromptGraphs, StepGraphs
from engine.rank.plan_building import PlanBuilder
from engine.rank.rank import Rank
from engine.step import Job

_logger = logging.getLogger(__name__)


def warm_up(rank: Rank, sizes: Sequence[tuple[int, int]] = (), *, decodes: bool = True) -> None:
    """Do now, on a GPU, what would make the first requests slow: measure the attention backends, compile kernels, tune
    the convolutions of the VAE, record graphs. In the thread that executes steps, and before the first.

    sizes: width and height of images to expect, in pixels, rounded to `size_multiple`, besides the checkpoint's
    default. One that needs too much memory is left out. decodes: whether images will be decoded at all. A recording
    that fails is logged, and steps are launched kernel by kernel.
    """
    model = rank.model
    if model.device.type != "cuda":
        return
    with torch.inference_mode():
        with _timed("attention backends"):
            model.choose_attention(measured=True)
            if model.attention.backend == "cudnn":
                rank.plans = PlanBuilder(model.attention, model.device, model.dtype)
        # images before graphs, since tuning the decoder empties the allocator's cache
        for size in dict.fromkeys([(model.config.default_width, model.config.default_height), *sizes]):
            try_image(rank, *size, decodes=decodes)
        if rank.plans is not None:
            rank.plans.build_all()
        if model.engine.cuda_graphs and model.dtype == torch.bfloat16:  # float32 is for comparisons
            record_graphs(rank)
        if model.mesh.world.size > 1:
            rank.link = measure_link(model.mesh.world, model.device)
    model.offload.dit.drop()
    torch.cuda.synchronize(model.device)
    torch.cuda.empty_cache()  # what this took and no longer needs is free for steps
    rank.fit_encoding()


def try_image(rank: Rank, width: int, height: int, *, decodes: bool) -> None:
    """Make an image of this size, unless there is too little memory for it. Raises whatever else goes wrong."""
    try:
        with _timed(f"an image of {width}×{height}"):
            _make_image(rank, width, height, decodes=decodes)
    except Exception as error:
        if not rank.recovery.survives(error):
            raise
        _logger.warning("out of memory in the warm-up of an image of %d×%d: %s", width, height, error)
        rank.recovery.free_memory()


def _make_image(rank: Rank, width: int, height: int, *, decodes: bool) -> None:
    """Run a step of this size, before it a guided one if the ranks divide guidance, and if `decodes` decode it, and
    encode a picture where pictures may go in."""
    model, config, degrees = rank.model, rank.model.config, rank.model.engine.degrees
    tokens, element, decoding = config.image_tokens(width, height), model.dtype.itemsize, model.decode_memory
    tokens += TYPICAL_PROMPT_TOKENS
    guided = config.divides_guidance(degrees)
    needed = max(
        batch_bytes(config, [tokens] * (1 + guided), degrees, element),
        batch_bytes(config, [tokens], degrees, element),
        decode_bytes(config, width, height, decoding.bytes_per_element, decoding.limit),
        picture_encode_bytes(config, width, height, decoding.bytes_per_element, decoding.limit)
        if model.engine.image_input
        else 0,
    )
    torch.cuda.empty_cache()
    free = model.offload.free_for_steps(encodes_beside=rank.prompts.beside_steps)
    fits = free is None or needed <= free
    fit = model.mesh.world.all_reduce(torch.tensor([float(fits)], device=model.device))
    if fit.item() < model.mesh.world.size:  # on every rank or on none, since a step is collective
        return
    prompt = (0,) * (PREFIX_TOKENS + TYPICAL_PROMPT_TOKENS)
    job = Job(-1, prompt, None, width, height, 1, 0.0, None, 0)
    two_segments = Job(-2, prompt, prompt, width, height, 1, config.default_guidance, None, 0)
    model.offload.dit.bring()
    if guided:  # each group of ranks steps a segment, where otherwise all share one
        rank.denoiser.step(rank.starter.start((two_segments,))[0])
    (state,), _ = rank.starter.start((job,))
    rank.denoiser.step([state])
    if not decodes:
        return
    latents = rank.decoder.unpack(job, state.latents)
    torch.cuda.synchronize(model.device)
    with _timed(f"the decoder's convolutions for {width}×{height}"):
        rank.decoder.warm_up(job, latents)
        torch.cuda.synchronize(model.device)
    if model.engine.image_input:
        with _timed(f"the encoder's convolutions for {width}×{height}"):
            rank.pictures.warm_up(width, height)
            torch.cuda.synchronize(model.device)


def record_graphs(rank: Rank) -> None:
    """Record CUDA graphs of encoding and of steps, where they can be. Collectives could be recorded too, but nobody has
    tried that with the groups of this engine; and a graph cannot follow weights that come and go."""
    model, offload = rank.model, set(rank.model.offload.plan.offload)
    if TEXT_ENCODER not in offload and model.encodes_alone:
        with without_graphs_if_it_fails(rank, "text encoder"):
            prompt_graphs = PromptGraphs(model)
            prompt_graphs.record_all()
            rank.prompts.graphs = prompt_graphs
    recordable = model.mesh.world.size == 1 and not offload & {DIT, DIT_LAYERWISE}
    if recordable and model.attention.captured_backend is not None:
        with without_graphs_if_it_fails(rank, "steps"):
            step_graphs = StepGraphs(model)
            step_graphs.record_all()
            rank.denoiser.graphs = step_graphs


@contextmanager
def without_graphs_if_it_fails(rank: Rank, what: str) -> Iterator[None]:
    """Go on after whatever a library or a kernel raises while it is recorded: it still runs outside of a graph. Raises
    the device's error if the device is lost."""
    try:
        with _timed(f"graphs of the {what}"):
            yield
    except Exception as error:
        _logger.warning("no CUDA graphs of the %s, recording failed", what, exc_info=True)
        torch.cuda.synchronize(rank.model.device)
        choice = rank.model.attention_choice
        refused = {**choice.refused, f"graphs of the {what}": f"{type(error).__name__}: {error}"}
        rank.model.attention_choice = replace(choice, refused=refused)


@contextmanager
def _timed(what: str) -> Iterator[None]:
    """Log how long a stage of the warm-up took."""
    began = time.perf_counter()
    yield
    _logger.info("warmed up %s in %.1f s", what, time.perf_counter() - began)
