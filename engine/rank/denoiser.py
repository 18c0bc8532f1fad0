"""A denoise step: velocities, by the ranks of a mesh together, guidance, and the Euler update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, partial

import torch

from engine.device.devices import to_device, to_host
from engine.kernels.rope import image_rotations
from engine.lora.adapters import Adapters
from engine.model.batch import Layout, Segment
from engine.model.transformer import TimeModulation
from engine.parallel.group import Group
from engine.planning.work_division import forward_passes, shares_all_tokens
from engine.rank.build import RankModel
from engine.rank.cuda_graphs import StepGraphs
from engine.rank.job_state import JobState
from engine.rank.sampling import guide
from engine.rank.step_handle import Preview
from engine.step import Job
from engine.step_cache.blocks.selective_pass import SelectivePass
from engine.step_cache.blocks.watched_half import WatchedHalf

Segments = Sequence[tuple[JobState, int]]  # jobs, each with the index of one of its texts
_CACHED_SHAPES = 8  # batch layouts and image grids kept: a layout is 4 MB at the real size


class Denoiser:
    """Advances jobs by a step. `graphs`: recordings of the transformer to use where they hold a batch; `replayed`:
    whether one was used for the last. blocks_run: of the last step, as `StepTimes` has it."""

    def __init__(
        self,
        model: RankModel,
        adapters: Adapters,
        draw_preview: Callable[[Job, torch.Tensor], torch.Tensor | None] | None,
    ) -> None:
        """draw_preview: a job's latents without noise, (image tokens, in_channels), to pixels on their device, if it
        can yet. None on a rank that makes no previews."""
        self._model, self._adapters, self._draw_preview = model, adapters, draw_preview
        self.graphs: StepGraphs | None = None
        self.replayed = False
        self.blocks_run: tuple[tuple[int, tuple[int, ...]], ...] = ()
        self._layout = lru_cache(maxsize=_CACHED_SHAPES)(self._make_layout)
        self._grid = lru_cache(maxsize=_CACHED_SHAPES)(self._make_grid)

    def step(self, states: Sequence[JobState]) -> list[Preview]:
        """Take an Euler step of every job, or of none if that raises. Returns the previews that are due."""
        memories = [(state, state.memory) for state in states if state.memory is not None]
        try:
            previews, stepped = self._take_step(states)
        except BaseException:
            for _, memory in memories:
                memory.abandon()
            raise
        for state, latents in zip(states, stepped, strict=True):
            state.latents, state.step = latents, state.step + 1
        for _, memory in memories:
            memory.commit()
        self.blocks_run = tuple((state.job.job_id, memory.blocks_run) for state, memory in memories)
        return previews

    def _take_step(self, states: Sequence[JobState]) -> tuple[list[Preview], list[torch.Tensor]]:
        """Make the previews that are due after a step of every job, and the latents; these and what is to be kept for
        later steps are not in force yet."""
        previews, stepped = [], []
        self.replayed = False
        for state in states:
            if state.memory is not None:
                state.memory.begin(state.step, self._model.config.transformer.num_layers)
        segments = [(state, half) for state in states for half in state.running]
        velocities = iter(self.predict(segments) if segments else ())
        for state in states:
            sigma, sigma_next = state.schedule.sigmas[state.step : state.step + 2]
            if state.memory is not None:
                velocity = state.memory.velocity(state.step, sigma, state.job.guidance, velocities)
            else:
                velocity = next(velocities)
                if len(state.texts) == 2:
                    velocity = guide(velocity, next(velocities), state.job.guidance)
            latents = state.latents.add(velocity, alpha=sigma_next - sigma)
            if self._draw_preview is not None and state.has_preview(state.step + 1):
                clean = latents.sub(velocity, alpha=sigma_next)  # where this velocity leads
                if state.kept is not None:
                    clean = state.kept.put_back(clean, sigma, 0.0)
                pixels = self._draw_preview(state.job, clean)
                if pixels is not None:
                    previews.append(Preview(state.job.job_id, state.step + 1, to_host(pixels)))
            if state.kept is not None:
                latents = state.kept.put_back(latents, sigma, sigma_next)
            stepped.append(latents)
        return previews, stepped

    def predict(self, segments: Segments) -> list[torch.Tensor]:
        """Predict the velocity of each segment, a job with the index of one of its texts: (image tokens, in_channels)
        float32.

        With guidance split, each of two groups of ranks predicts for some segments, and they exchange velocities; where
        one would have much more to do than the other, all ranks share all tokens, if they divide the heads. They always
        do where blocks may be left out, since every rank keeps what that takes.
        """
        tokens = [state.latents.shape[0] for state, _ in segments]
        lengths = [state.latents.shape[0] + state.texts[half].shape[0] for state, half in segments]
        together = any(shares_all_tokens(state.job.cache) for state, _ in segments)
        parts, _ = forward_passes(
            self._model.config.transformer, lengths, self._model.engine.degrees, together=together
        )
        if len(parts) == 1:
            return list(self._forward(segments, self._model.mesh.wide).split(tokens))
        cfg = self._model.mesh.cfg
        own = self._forward([segments[i] for i in parts[cfg.rank]], self._model.mesh.sp)
        every = cfg.gather_rows(own, [sum(tokens[i] for i in part) for part in parts])
        order = [i for part in parts for i in part]
        velocities = dict(zip(order, every.split([tokens[i] for i in order]), strict=True))
        return [velocities[i] for i in range(len(segments))]

    def _forward(self, segments: Segments, group: Group) -> torch.Tensor:
        """The velocities of segments whose rows the group's ranks share, in one forward: (image tokens of all,
        in_channels) float32."""
        if not segments:
            return torch.empty((0, self._model.config.transformer.in_channels), device=self._model.device)
        states = _images(segments)
        modulation = TimeModulation(
            block=torch.stack([state.schedule.modulation.block[state.step] for state, _ in segments]),
            final=torch.stack([state.schedule.modulation.final[state.step] for state, _ in segments]),
        )
        with self._batch(segments, group) as layout:
            return self._model.transformer(
                [state.texts[half] for state, half in segments],
                [state.latents for state in states],
                modulation,
                layout,
                denoise=self._denoise_of(segments, states, layout, group),
            )

    def _denoise_of(
        self, segments: Segments, states: Sequence[JobState], layout: Layout, group: Group
    ) -> Callable[..., torch.Tensor] | None:
        """Choose what stands in for `Transformer.denoise`, if anything does."""
        watched = [_watch(state, half) for state, half in segments]
        if any(watched):

            def narrow(chosen: Sequence[int]) -> AbstractContextManager[Layout]:
                return self._batch([segments[i] for i in chosen], group)

            return SelectivePass(self._model.transformer, layout, watched, narrow).denoise
        graphs = self.graphs
        if graphs is None or any(state.loras for state in states) or not graphs.holds(layout.share.whole):
            return None  # adapters are no part of recordings
        self.replayed = True
        return graphs.denoise

    @contextmanager
    def _batch(self, segments: Segments, group: Group) -> Iterator[Layout]:
        """Lay out a batch, whose adapters are in force meanwhile."""
        states = _images(segments)
        image_of = {state.job.job_id: image for image, state in enumerate(states)}
        layout = self._layout(
            tuple(
                Segment(image_of[state.job.job_id], state.texts[half].shape[0], *state.grid) for state, half in segments
            ),
            group,
        )
        share = layout.share
        with self._adapters.by_row(
            images=[(state.loras, state.latents.shape[0]) for state in states],
            blocks=[(state.loras, rows) for (state, _), rows in zip(segments, share.multiplied.lengths, strict=True)],
            last=[(state.loras, rows) for (state, _), rows in zip(segments, share.own.lengths, strict=True)],
        ):
            yield layout

    def _make_layout(self, segments: tuple[Segment, ...], group: Group) -> Layout:
        grids = [self._grid(segment.grid_height, segment.grid_width) for segment in segments]
        return Layout(segments, grids, group, self._model.mesh.tp)

    def _make_grid(self, height: int, width: int) -> torch.Tensor:
        """The rotations of a grid of image tokens, (height · width, head_dim / 2) complex64."""
        dit = self._model.config.transformer
        # a table of each axis is a few kilobytes to compute and to copy, the grid up to 8 MB
        place = partial(to_device, device=self._model.device)
        return image_rotations(height, width, dit.axes_dims_rope, dit.rope_theta, place=place)


def _images(segments: Segments) -> list[JobState]:
    """List the jobs of a batch, each once."""
    return list({state.job.job_id: state for state, _ in segments}.values())


def _watch(state: JobState, half: int) -> WatchedHalf | None:
    return None if state.memory is None else WatchedHalf.of(state.job.cache, state.memory.halves[half], state.step)
