"""Quantised tensors whose parts do not fit together, and scales that cannot be."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from engine.checkpoint.convert.quantize import encode
from engine.errors import CheckpointError
from tests.engine.checkpoint.layouts.encoded import stored, whole

FP8, INT8, MXFP8, NVFP4 = ({"format": name} for name in ("float8_e4m3fn", "int8_tensorwise", "mxfp8", "nvfp4"))


def encoded(metadata: dict[str, Any], **changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """A weight in the format of its metadata, with some of its tensors replaced or left out."""
    tensors, _ = encode(metadata["format"], "a", torch.ones(32, 64), group=1)
    for kind, tensor in changes.items():
        name = f"a.{kind}"
        tensors = {key: value for key, value in tensors.items() if key != name}
        if tensor is not None:
            tensors[name] = tensor
    return tensors


@pytest.mark.parametrize(
    ("metadata", "changes", "message"),
    [
        (FP8, {"weight_scale": None}, "a.weight: has the format float8_e4m3fn, for which its weight_scale is missing"),
        (
            FP8,
            {"weight_scale": torch.ones(2)},
            r"a.weight_scale: .* expected floats, one or \(32, 1\), found F32 \(2,\)",
        ),
        (FP8, {"weight_scale": torch.ones(1, dtype=torch.uint8)}, "a.weight_scale: .* found U8"),
        (FP8, {"weight": torch.ones(32, 64)}, "a.weight: does not fit .*, expected a matrix of F8_E4M3, found F32"),
        (FP8, {"weight_scale_2": torch.ones(())}, "a.weight_scale_2: is not known for .* float8_e4m3fn"),
        (INT8, {"weight": torch.ones(64, dtype=torch.int8)}, "a.weight: .* a matrix of I8"),
        (INT8, {"pre_quant_scale": torch.ones(64)}, "a.pre_quant_scale: is not known for"),
        (INT8 | {"convrot": True}, {}, "a.weight: .* expected a multiple of 256 columns, found 64"),
        (MXFP8, {"weight_scale": torch.ones(32, 2, dtype=torch.uint8)}, r"a.weight_scale: .* U8 or F8_E8M0 \(128, 4\)"),
        (MXFP8, {"weight_scale": torch.ones(128, 4)}, "a.weight_scale: .* found F32"),
        (NVFP4, {"weight_scale_2": None}, "a.weight: has the format nvfp4, for which its weight_scale_2 is missing"),
        (NVFP4, {"weight_scale_2": torch.ones(2)}, "a.weight_scale_2: .* floats, 1 in number"),
        (NVFP4, {"pre_quant_scale": torch.ones(32)}, "a.pre_quant_scale: .* floats, 64 in number"),
    ],
)
def test_headers_that_do_not_fit_are_refused(metadata: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"^model.safetensors: {message}"):
        stored(encoded(metadata, **changes), metadata)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize(
    ("metadata", "kind"),
    [(FP8, "weight_scale"), (INT8, "weight_scale"), (NVFP4, "weight_scale_2"), (NVFP4, "pre_quant_scale")],
)
def test_scales_that_cannot_be_are_refused(metadata: dict[str, Any], kind: str, bad: float) -> None:
    shape = {"pre_quant_scale": (64,)}.get(kind, ())
    tensor = stored(encoded(metadata, **{kind: torch.full(shape, bad)}), metadata)
    with pytest.raises(CheckpointError, match=f"a.{kind}: holds scales that are negative or not finite"):
        whole(tensor)


@pytest.mark.parametrize(
    ("metadata", "scale"),
    [
        (MXFP8, torch.full((128, 4), 255, dtype=torch.uint8)),
        (NVFP4, torch.full((128, 4), torch.nan).to(torch.float8_e4m3fn)),
        (NVFP4, torch.full((128, 4), -1.0).to(torch.float8_e4m3fn)),
    ],
)
def test_block_scales_that_cannot_be_are_refused(metadata: dict[str, Any], scale: torch.Tensor) -> None:
    tensor = stored(encoded(metadata, weight_scale=scale), metadata)
    with pytest.raises(CheckpointError, match=r"a\.weight_scale: holds scales that are negative or not finite"):
        whole(tensor)


def test_padding_of_scales_is_not_looked_at() -> None:
    tensors, metadata = encode("mxfp8", "a", torch.ones(2, 32))
    scales = tensors["a.weight_scale"]
    used = scales.flatten()[[0, 16]].clone()
    scales.fill_(255)
    scales.view(-1)[[0, 16]] = used
    assert torch.equal(whole(stored(tensors, metadata)), torch.ones(2, 32))
