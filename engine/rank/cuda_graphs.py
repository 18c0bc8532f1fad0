"""CUDA graphs: hundreds of small kernels, recorded once and launched as one.

A step of few tokens is over on the device before the host has launched it. So the forward is recorded for a few
numbers of tokens, and a batch runs in the smallest recording that holds it: the rows that are left over form one dummy
segment, which attends to itself and is read by nobody. Everything that differs between two batches of a recording lies
in device memory that is overwritten before a replay. Long steps are launched kernel by kernel, which costs them
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache, lru_cache, partial

import torch

from engine.kernels.packing import CapturedPacking, Packing
from engine.model.transformer import TimeModulation
from engine.parallel.row_share import RowShare
from engine.rank.build import RankModel

# Sizes of denoise steps: a matrix product works on tiles of 128 rows, so filling up a tile costs it nothing. Beyond the
# largest the arithmetic alone takes an H200 30 ms, many times what launching 300 kernels takes a host.
_STEP_ROWS = 128
_LARGEST_STEP = 1024
_CACHED_PACKINGS = 8
_MOST_SEGMENTS = 8  # beside the dummy; more of them in so few tokens are very small images
# Sizes of prompts. Below about 185 tokens reading the encoder's weights takes longer than multiplying with them.
_PROMPT_ROWS = 64
_LARGEST_PROMPT = 576


class _Recorder:
    """What recordings that never run at once have in common: memory, and the stream they are made in, without which
    they would not share it, since the allocator hands a stream's memory to that stream alone."""

    def __init__(self, device: torch.device) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)


class _Recording:
    """One forward as a graph. `run` reads and writes the same memory at every replay."""

    def __init__(self, run: Callable[[], torch.Tensor], recorder: _Recorder) -> None:
        stream = recorder.stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()  # whatever happens once: kernels are compiled, libraries take their workspaces
        stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        before = torch.cuda.current_stream()
        try:
            # thread_local: an image may be decoded meanwhile, in a thread and a stream of its own
            with torch.cuda.graph(self._graph, pool=recorder.pool, stream=stream, capture_error_mode="thread_local"):
                self.output = run()
        except BaseException:
            # torch ends a capture that has become invalid with an error, and neither leaves its stream nor ends the
            # recording of its memory then, during which no block that another stream uses is given back.
            torch.cuda.set_stream(before)
            with suppress(RuntimeError):  # where it has been ended
                torch._C._cuda_endAllocateToPool(stream.device_index, recorder.pool)
            raise

    def replay(self) -> torch.Tensor:
        """Run the graph. Returns the output, which the next replay overwrites."""
        self._graph.replay()
        return self.output


class _StepRecording(_Recording):
    """A denoise step of a number of tokens. `x`: (rows, width); `rotations`: (rows, head_dim / 2) complex64; of the
    `modulation` and of the `packing` a row or length for each segment and the dummy."""

    def __init__(self, model: RankModel, recorder: _Recorder, rows: int) -> None:
        config, device = model.config.transformer, model.device
        width, segments = config.hidden_size, _MOST_SEGMENTS + 1
        self.x = torch.zeros((rows, width), dtype=model.dtype, device=device)
        self.modulation = TimeModulation(
            block=torch.zeros((segments, 6 * width), device=device),
            final=torch.zeros((segments, width), device=device),
        )
        self.packing = CapturedPacking(rows, segments, device)
        self.rotations = torch.ones((rows, config.head_dim // 2), dtype=torch.complex64, device=device)
        arguments = self.x, self.modulation, RowShare(self.packing), self.rotations
        super().__init__(lambda: model.transformer.denoise(*arguments), recorder)


class StepGraphs:
    """Denoise steps of at most 1024 tokens and 8 segments. All replays must be in one stream."""

    def __init__(self, model: RankModel) -> None:
        self._filled_up = lru_cache(maxsize=_CACHED_PACKINGS)(lambda lengths: Packing(lengths, model.device))
        self._recording = cache(partial(_StepRecording, model, _Recorder(model.device)))  # by its rows

    def holds(self, packing: Packing) -> bool:
        """Whether a step of this packing can be a replay."""
        return packing.tokens <= _LARGEST_STEP and packing.segments <= _MOST_SEGMENTS

    def record_all(self) -> None:
        """Record every size, the largest first, so that the others find their memory in its pool."""
        for rows in range(_LARGEST_STEP, 0, -_STEP_ROWS):
            self._recording(rows)

    def denoise(
        self, x: torch.Tensor, modulation: TimeModulation, share: RowShare, rotations: torch.Tensor
    ) -> torch.Tensor:
        """Compute `Transformer.denoise` of one rank, which has all rows. The next call overwrites the result."""
        packing = share.whole
        tokens = packing.tokens
        rows = -(-tokens // _STEP_ROWS) * _STEP_ROWS
        recording = self._recording(rows)
        recording.x[:tokens].copy_(x)
        recording.x[tokens:].zero_()
        recording.modulation.block[: packing.segments].copy_(modulation.block)
        recording.modulation.final[: packing.segments].copy_(modulation.final)
        recording.rotations[:tokens].copy_(rotations)
        empty = (0,) * (_MOST_SEGMENTS - packing.segments)
        recording.packing.overwrite(self._filled_up((*packing.lengths, rows - tokens, *empty)))
        return recording.replay()[:tokens]


class _PromptRecording(_Recording):
    """The text encoder on one prompt. `ids`: (rows,) int64."""

    def __init__(self, model: RankModel, recorder: _Recorder, rows: int) -> None:
        self.ids = torch.zeros(rows, dtype=torch.int64, device=model.device)
        packing = Packing([rows], model.device)
        super().__init__(lambda: model.text_encoder(self.ids, packing), recorder)


class PromptGraphs:
    """The text encoder on one prompt. Attention is causal, so what fills a recording up behind the prompt changes
    nothing in it. All replays must be in one stream."""

    def __init__(self, model: RankModel) -> None:
        self._recording = cache(partial(_PromptRecording, model, _Recorder(model.device)))  # by its rows

    def record_all(self) -> None:
        """Record every size, as `StepGraphs`."""
        for rows in range(_LARGEST_PROMPT, 0, -_PROMPT_ROWS):
            self._recording(rows)

    def holds(self, tokens: int) -> bool:
        """Whether a prompt of this length can be a replay."""
        return tokens <= _LARGEST_PROMPT

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        """Compute `TextEncoder.forward` of one prompt's ids, (tokens,). The next call overwrites the result."""
        tokens = ids.shape[0]
        recording = self._recording(-(-tokens // _PROMPT_ROWS) * _PROMPT_ROWS)
        recording.ids[:tokens].copy_(ids)
        return recording.replay()[:tokens]
