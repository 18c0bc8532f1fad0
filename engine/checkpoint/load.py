"""Fills modules with a rank's share of a checkpoint."""

from __future__ import annotations

from collections import defaultdict

import torch

from engine.checkpoint.files import CheckpointFiles
from engine.checkpoint.tensors import Source
from engine.errors import CheckpointError


def load_weights(
    module: torch.nn.Module,
    checkpoint: CheckpointFiles,
    component: str,
    *,
    rank: int,
    size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Give `module` (built on the meta device) its parameters, reading only the slices that this rank keeps.

    A parameter is allocated once on `device` and each of its sources is copied straight into its rows, so no whole
    sharded tensor ever exists on a rank. Raises `CheckpointError` if a tensor cannot be read or is not finite.
    """
    files = checkpoint.files[component]
    by_parameter: dict[str, list[Source]] = defaultdict(list)
    for source in checkpoint.sources[component]:
        by_parameter[source.parameter].append(source)

    state = {}
    for name, sources in by_parameter.items():
        shapes = [source.shard_shape(size) for source in sources]
        rows = sum(shape[0] for shape in shapes)
        parameter = torch.empty(
            (rows, *shapes[0][1:]), device=device, dtype=torch.float32 if sources[0].float32 else dtype
        )
        start = 0
        for source, shape in zip(sources, shapes, strict=True):
            target = parameter[start : start + shape[0]]
            target.copy_(files.read(source, rank, size))
            if source.offset:
                target.add_(source.offset)
            start += shape[0]
        if not _is_finite(parameter):
            named = ", ".join(source.name for source in sources)
            raise CheckpointError.of(
                files.headers[sources[0].name].file, "holds values that are not finite", name=named
            )
        state[name] = parameter
    module.load_state_dict(state, strict=True, assign=True)
    module.requires_grad_(False)


def _is_finite(tensor: torch.Tensor) -> bool:
    # the sum of finite values may overflow, which is rare enough to look twice
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())
