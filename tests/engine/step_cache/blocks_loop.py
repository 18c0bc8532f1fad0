"""DBCache's rule as it is published, in a plain loop: one image, a half at a time, around diffusers' blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from engine.config.demo_checkpoints import DEMO_CHECKPOINTS
from engine.step_cache.settings import StepCache
from tests.oracle import Request, load_pipeline, packed_noise, shift_of

RAW = DEMO_CHECKPOINTS["demo-raw"]
Blocks = list[tuple[int, ...]]  # that each half ran, step by step


def loop(request: Request, cache: StepCache) -> tuple[torch.Tensor, Blocks]:
    """One image by diffusers' transformer, a half at a time: its last latents, and the blocks that were run."""
    pipeline, cpu = load_pipeline(RAW), torch.device("cpu")
    texts = [request.prompt, *([request.negative_prompt] if request.guidance else [])]
    halves = [RuleOfAHalf(cache, request.steps) for _ in texts]
    every = pipeline.transformer.transformer_blocks
    rows, columns = request.height // 16, request.width // 16
    with torch.no_grad():
        encoded = [_unpadded(pipeline.encode_prompt(text, cpu, 1, max_sequence_length=64)) for text in texts]
        latents = packed_noise(RAW, request, torch.float32)
        pipeline.scheduler.set_timesteps(sigmas=request.levels, mu=shift_of(RAW, request), device=cpu)
        pipeline.transformer.transformer_blocks = nn.ModuleList([RuledBlocks(every, halves)])
        try:
            for timestep in pipeline.scheduler.timesteps:
                velocities = [
                    pipeline.transformer(
                        hidden_states=latents,
                        encoder_hidden_states=text,
                        timestep=(timestep / 1000).expand(1),
                        position_ids=pipeline.prepare_position_ids(text.shape[1], rows, columns, cpu),
                        return_dict=False,
                    )[0]
                    for text in encoded
                ]
                velocity = velocities[0] + request.guidance * (velocities[0] - velocities[-1])
                latents = pipeline.scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        finally:
            pipeline.transformer.transformer_blocks = every
    return latents[0], list(zip(*(half.blocks_run for half in halves), strict=True))


@dataclass
class RuleOfAHalf:
    """What a half remembers."""

    cache: StepCache
    steps: int
    step: int = 0
    first: torch.Tensor | None = None
    between: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    in_a_row: int = 0
    saved: int = 0
    blocks_run: list[int] = field(default_factory=list)

    def run(self, blocks: nn.ModuleList, x: torch.Tensor, *around: Any) -> torch.Tensor:
        cache, begin = self.cache, x
        end = len(blocks) - cache.last_blocks
        for block in blocks[: cache.first_blocks]:
            x = block(x, *around)
        first, start = x - begin, x
        if self._may_be_saved() and self._change(first) < cache.threshold:
            x = x + self._residual()
            self.in_a_row, self.saved = self.in_a_row + 1, self.saved + 1
            self.blocks_run.append(cache.first_blocks + cache.last_blocks)
        else:
            for block in blocks[cache.first_blocks : end]:
                x = block(x, *around)
            self.first, self.in_a_row = first, 0
            self.between.append((self.step, x - start))
            self.blocks_run.append(len(blocks))
        for block in blocks[end:]:
            x = block(x, *around)
        self.step += 1
        return x

    def _may_be_saved(self) -> bool:
        allowed = self.in_a_row < self.cache.max_consecutive and self.saved < self.cache.max_cached
        return self.cache.warmup_steps <= self.step < self.steps - 1 and self.first is not None and allowed

    def _change(self, first: torch.Tensor) -> float:
        assert self.first is not None
        return float((first - self.first).abs().mean() / self.first.abs().mean())

    def _residual(self) -> torch.Tensor:
        last, residual = self.between[-1]
        if self.cache.order == 0 or len(self.between) < 2:
            return residual
        before, earlier = self.between[-2]
        return residual + (self.step - last) * (residual - earlier) / (last - before)


class RuledBlocks(nn.Module):
    """Stands in for all blocks of diffusers' transformer; calls by turns are for the halves by turns."""

    def __init__(self, blocks: nn.ModuleList, halves: list[RuleOfAHalf]) -> None:
        super().__init__()
        self.blocks, self.halves, self.calls = blocks, halves, 0

    def forward(self, x: torch.Tensor, *around: Any) -> torch.Tensor:
        self.calls += 1
        return self.halves[(self.calls - 1) % len(self.halves)].run(self.blocks, x, *around)


def _unpadded(encoded: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """(1, tokens, layers, width) of the tokens that are not masked."""
    states, mask = encoded
    return states[:, mask[0].bool()]
