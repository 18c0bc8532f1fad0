"""A denoise step: velocities, by the ranks of a mesh together, guidance, and the Euler update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch

from engine.device.devices import to_device, to_host
from engine.kernels.rope import image_rotations
from engine.lora.adapters import Adapters
from engine.model.batch import Layout, Segment
from engine.model.transformer import TimeModulation
from engine.parallel.group import Group
from engine.planning.work_division import forward_passes
from engine.rank.build import RankModel
from engine.rank.cuda_graphs import StepGraphs
from engine.rank.job_state import JobState
from engine.rank.sampling import guide
from engine.rank.step_handle import Preview
from engine.step import Job

_CACHED_SHAPES = 8  # batch layouts and image grids kept: a layout is 4 MB at the real size


class Denoiser:
    """Advances jobs by a step. `graphs`: recordings of the transformer to use where they hold a batch; `replayed`:
    whether one was used for the last."""

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
        self._layout = lru_cache(maxsize=_CACHED_SHAPES)(self._make_layout)
        self._grid = lru_cache(maxsize=_CACHED_SHAPES)(self._make_grid)

    def step(self, states: Sequence[JobState]) -> list[Preview]:
        """Take an Euler step of every job, or of none if that raises. Returns the previews that are due."""
        previews, stepped = [], []
        velocities = iter(self.predict([(state, text) for state in states for text in state.texts]))
        for state in states:
            velocity = next(velocities)
            if len(state.texts) == 2:
                velocity = guide(velocity, next(velocities), state.job.guidance)
            sigma, sigma_next = state.schedule.sigmas[state.step : state.step + 2]
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
        for state, latents in zip(states, stepped, strict=True):
            state.latents, state.step = latents, state.step + 1
        return previews

    def predict(self, segments: Sequence[tuple[JobState, torch.Tensor]]) -> list[torch.Tensor]:
        """Predict the velocity of each segment, a job with one of its texts, (text tokens, width): (image tokens,
        in_channels) float32.

        With guidance split, each of two groups of ranks predicts for some segments, and they exchange velocities; where
        one would have much more to do than the other, all ranks share all tokens, if they divide the heads.
        """
        tokens = [state.latents.shape[0] for state, _ in segments]
        lengths = [state.latents.shape[0] + text.shape[0] for state, text in segments]
        parts, _ = forward_passes(self._model.config.transformer, lengths, self._model.engine.degrees)
        if len(parts) == 1:
            return list(self._forward(segments, self._model.mesh.wide).split(tokens))
        cfg = self._model.mesh.cfg
        own = self._forward([segments[i] for i in parts[cfg.rank]], self._model.mesh.sp)
        every = cfg.gather_rows(own, [sum(tokens[i] for i in part) for part in parts])
        order = [i for part in parts for i in part]
        velocities = dict(zip(order, every.split([tokens[i] for i in order]), strict=True))
        return [velocities[i] for i in range(len(segments))]

    def _forward(self, segments: Sequence[tuple[JobState, torch.Tensor]], group: Group) -> torch.Tensor:
        """The velocities of segments whose rows the group's ranks share, in one forward: (image tokens of all,
        in_channels) float32."""
        if not segments:
            return torch.empty((0, self._model.config.transformer.in_channels), device=self._model.device)
        states = list({state.job.job_id: state for state, _ in segments}.values())
        image_of = {state.job.job_id: image for image, state in enumerate(states)}
        layout = self._layout(
            tuple(Segment(image_of[state.job.job_id], text.shape[0], *state.grid) for state, text in segments), group
        )
        share = layout.share
        modulation = TimeModulation(
            block=torch.stack([state.schedule.modulation.block[state.step] for state, _ in segments]),
            final=torch.stack([state.schedule.modulation.final[state.step] for state, _ in segments]),
        )
        graphs = self.graphs
        if graphs is not None and (any(state.loras for state in states) or not graphs.holds(share.whole)):
            graphs = None  # adapters are no part of recordings
        self.replayed = graphs is not None
        with self._adapters.by_row(
            images=[(state.loras, state.latents.shape[0]) for state in states],
            blocks=[(state.loras, rows) for (state, _), rows in zip(segments, share.multiplied.lengths, strict=True)],
            last=[(state.loras, rows) for (state, _), rows in zip(segments, share.own.lengths, strict=True)],
        ):
            return self._model.transformer(
                [text for _, text in segments],
                [state.latents for state in states],
                modulation,
                layout,
                denoise=graphs and graphs.denoise,
            )

    def _make_layout(self, segments: tuple[Segment, ...], group: Group) -> Layout:
        grids = [self._grid(segment.grid_height, segment.grid_width) for segment in segments]
        return Layout(segments, grids, group, self._model.mesh.tp)

    def _make_grid(self, height: int, width: int) -> torch.Tensor:
        """The rotations of a grid of image tokens, (height · width, head_dim / 2) complex64."""
        dit = self._model.config.transformer
        # a table of each axis is a few kilobytes to compute and to copy, the grid up to 8 MB
        place = partial(to_device, device=self._model.device)
        return image_rotations(height, width, dit.axes_dims_rope, dit.rope_theta, place=place)
