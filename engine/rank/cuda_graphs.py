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
from functools import lru_cache

import torch

from engine.config.components import TransformerConfig
from engine.kernels.packing import CapturedPacking, Packing
from engine.model.text_encoder import TextEncoder
from engine.model.transformer import TimeModulation, Transformer
from engine.parallel.row_share import RowShare

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
        """The output, which the next replay overwrites."""
        self._graph.replay()
        return self.output


class _StepRecording(_Recording):
    def __init__(
        self,
        transformer: Transformer,
        config: TransformerConfig,
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
        recorder: _Recorder,
    ) -> None:
        width, segments = config.hidden_size, _MOST_SEGMENTS + 1
        self.x = torch.zeros((rows, width), dtype=dtype, device=device)
        self.modulation = TimeModulation(
            block=torch.zeros((segments, 6 * width), device=device),
            final=torch.zeros((segments, width), device=device),
        )
        self.packing = CapturedPacking(rows, segments, device)
        self.rotations = torch.ones((rows, config.head_dim // 2), dtype=torch.complex64, device=device)
        share = RowShare(self.packing)
        super().__init__(lambda: transformer.denoise(self.x, self.modulation, share, self.rotations), recorder)


class StepGraphs:
    """Denoise steps of at most 1024 tokens and 8 segments. All replays must be in one stream."""

    def __init__(
        self, transformer: Transformer, config: TransformerConfig, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._arguments = transformer, config
        self._dtype, self._device = dtype, device
        self._filled_up = lru_cache(maxsize=_CACHED_PACKINGS)(lambda lengths: Packing(lengths, device))
        self._recorder = _Recorder(device)
        self._recordings: dict[int, _StepRecording] = {}

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
        """As `Transformer.denoise` of one rank, which has all rows. The result is overwritten by the next call."""
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

    def _recording(self, rows: int) -> _StepRecording:
        if rows not in self._recordings:
            arguments = (*self._arguments, rows, self._dtype, self._device, self._recorder)
            self._recordings[rows] = _StepRecording(*arguments)
        return self._recordings[rows]


class _PromptRecording(_Recording):
    def __init__(self, encoder: TextEncoder, rows: int, device: torch.device, recorder: _Recorder) -> None:
        self.ids = torch.zeros(rows, dtype=torch.int64, device=device)
        packing = Packing([rows], device)
        super().__init__(lambda: encoder(self.ids, packing), recorder)


class PromptGraphs:
    """The text encoder on one prompt. Attention is causal, so what fills a recording up behind the prompt changes
    nothing in it. All replays must be in one stream."""

    def __init__(self, encoder: TextEncoder, device: torch.device) -> None:
        self._encoder, self._device = encoder, device
        self._recorder = _Recorder(device)
        self._recordings: dict[int, _PromptRecording] = {}

    def record_all(self) -> None:
        for rows in range(_LARGEST_PROMPT, 0, -_PROMPT_ROWS):
            self._recording(rows)

    def holds(self, tokens: int) -> bool:
        return tokens <= _LARGEST_PROMPT

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        """As `TextEncoder.forward` with one prompt's ids, (tokens,). The result is overwritten by the next call."""
        tokens = ids.shape[0]
        recording = self._recording(-(-tokens // _PROMPT_ROWS) * _PROMPT_ROWS)
        recording.ids[:tokens].copy_(ids)
        return recording.replay()[:tokens]

    def _recording(self, rows: int) -> _PromptRecording:
        if rows not in self._recordings:
            self._recordings[rows] = _PromptRecording(self._encoder, rows, self._device, self._recorder)
        return self._recordings[rows]
