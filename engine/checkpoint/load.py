"""Fills modules with a rank's share of a checkpoint, quantising it on the way if it is asked to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from engine.checkpoint.tensors import Source
from engine.config import ModelConfig
from engine.errors import ArgumentError, CheckpointError
from engine.kernels.fp8 import FP8_MULTIPLE, quantize_rows

# The matrices of the DiT's blocks, which are nearly all of its work. What is left in the model's dtype (the layers
# around the blocks, text fusion, norms and tables) is less than a hundredth of it, and hurts most.
FP8_MATRICES = ("attn.qkvg", "attn.out", "ff.gate_up", "ff.down")


class Weights(Protocol):
    """Where the weights of a model come from: a checkpoint's files, or, for a benchmark, nowhere in particular."""

    config: ModelConfig
    sources: dict[str, list[Source]]  # by component: text_encoder, transformer, vae

    @property
    def bytes_read(self) -> int: ...

    def read(self, component: str, source: Source, rank: int, size: int) -> torch.Tensor:
        """A rank's share of a tensor, of shape `source.shard_shape(size)`, in any dtype and on any device."""
        ...

    def where(self, component: str, source: Source) -> Path:
        """The file to name when a tensor is wrong."""
        ...

    def close(self) -> None: ...


def load_weights(
    module: nn.Module,
    weights: Weights,
    component: str,
    *,
    rank: int,
    size: int,
    device: torch.device,
    dtype: torch.dtype,
    fp8: Collection[str] = (),
) -> None:
    """Give `module` (built on the meta device) its parameters, reading only the slices that this rank keeps.

    A parameter is allocated once on `device` and each of its sources is copied straight into its rows, so no whole
    sharded tensor ever exists on a rank. The transformer blocks' matrices whose names are in `fp8` (of
    `FP8_MATRICES`) are kept as fp8 rows, each quantised as soon as it has been read: where a matrix is split by
    columns, a rank's part of a row has a scale of its own. Raises `CheckpointError` if a tensor cannot be read or is
    not finite.
    """
    by_parameter: dict[str, list[Source]] = defaultdict(list)
    for source in weights.sources[component]:
        by_parameter[source.parameter].append(source)

    state = {}
    for name, sources in by_parameter.items():
        shapes = [source.shard_shape(size) for source in sources]
        height = sum(shape[0] for shape in shapes)
        parameter = torch.empty(
            (height, *shapes[0][1:]), device=device, dtype=torch.float32 if sources[0].float32 else dtype
        )
        start = 0
        for source, shape in zip(sources, shapes, strict=True):
            target = parameter[start : start + shape[0]]
            target.copy_(weights.read(component, source, rank, size))
            if source.offset:
                target.add_(source.offset)
            start += shape[0]
        if not _is_finite(parameter):
            named = ", ".join(source.name for source in sources)
            raise CheckpointError.of(
                weights.where(component, sources[0]), "holds values that are not finite", name=named
            )
        if name.startswith("transformer_blocks.") and name.endswith(tuple(f".{matrix}.weight" for matrix in fp8)):
            if device.type == "cuda" and any(length % FP8_MULTIPLE for length in parameter.shape):
                raise ArgumentError(
                    f"quantization fp8 needs matrices whose sides {FP8_MULTIPLE} divides, and a rank's {name} is "
                    f"{tuple(parameter.shape)}: use quantization none or fewer ranks",
                    parameter="quantization",
                )
            rows = quantize_rows(parameter)
            parameter = rows.values
            state[f"{name}_scale"] = rows.scales
            matrix = module.get_submodule(name.removesuffix(".weight"))
            matrix.register_parameter("weight_scale", nn.Parameter(rows.scales, requires_grad=False))
        state[name] = parameter
    module.load_state_dict(state, strict=True, assign=True)
    module.requires_grad_(False)


def _is_finite(tensor: torch.Tensor) -> bool:
    # the sum of finite values may overflow, which is rare enough to look twice
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())
