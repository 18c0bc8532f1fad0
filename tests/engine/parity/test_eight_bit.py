"""Weights that a file has in 8 bits: they stay so, take half the memory, and multiply as what they stand for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.checkpoint import load
from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.files.stored import Bounds, StoredTensor, WeightFormat
from engine.checkpoint.layouts.tensors import Source
from engine.checkpoint.weight_format import in_blocks
from engine.config.engine_config import EngineConfig
from engine.errors import CheckpointError
from engine.kernels.fp8 import FP8
from engine.kernels.int8 import dequantize_groups, quantize_groups
from engine.parallel.group import LocalGroup
from engine.parallel.linear import ParallelMatrix, RowParallelLinear
from engine.parallel.mesh import Mesh
from engine.rank.rank import Rank

CPU = torch.device("cpu")


class EightBit(StoredTensor):
    """A matrix that a file has in 8 bits: fp8 with one scale, or int8 in groups."""

    def __init__(self, tensor: StoredTensor, weight_format: WeightFormat, *, full_precision: bool = False) -> None:
        self.file, self.name, self.shape = tensor.file, tensor.name, tensor.shape
        self.format, self.weight_format, self.full_precision = weight_format, weight_format, full_precision
        whole = tensor.read(tuple(slice(0, length) for length in tensor.shape)).float()
        if weight_format == "fp8":
            self.scale = whole.abs().amax() / 448
            self.values, self.scales = (whole / self.scale).to(FP8), self.scale.expand(tensor.shape[0], 1)
            self.dense = self.values.float() * self.scale
        else:
            self.values, self.scales = quantize_groups(whole)
            self.dense = dequantize_groups(self.values, self.scales, torch.float32)

    def size(self, bounds: Bounds) -> int:
        return self.values[bounds].numel()

    def read(self, bounds: Bounds) -> torch.Tensor:
        return self.dense[bounds]

    def read_eight_bit(self, bounds: Bounds) -> tuple[torch.Tensor, torch.Tensor]:
        rows, columns = bounds
        if self.weight_format == "fp8":
            return self.values[bounds], self.scales[rows].clone()
        return self.values[bounds], self.scales[rows, columns.start // 32 : columns.stop // 32]


class Stored:
    """The `Weights` of a checkpoint, some of whose tensors are stored otherwise."""

    def __init__(self, folder: Path, change: Callable[[Source, StoredTensor], StoredTensor]) -> None:
        self.files = CheckpointFiles.open(EngineConfig(model=str(folder)))
        self.config, self.sources, self.change = self.files.config, self.files.sources, change
        self.kept: dict[str, StoredTensor] = {}

    def stored(self, component: str, source: Source) -> StoredTensor:
        if source.name not in self.kept:
            self.kept[source.name] = self.change(source, self.files.stored(component, source))
        return self.kept[source.name]

    def close(self) -> None:
        self.files.close()


def matrices_as(
    weight_format: WeightFormat, *, full_precision: str = ""
) -> Callable[[Source, StoredTensor], StoredTensor]:
    def change(source: Source, tensor: StoredTensor) -> StoredTensor:
        if source.split is None or source.shape[-1] % 32:
            return tensor
        marked = bool(full_precision) and full_precision in source.name
        return EightBit(tensor, weight_format, full_precision=marked)

    return change


def rank_of(
    folder: Path, change: Callable[[Source, StoredTensor], StoredTensor], **options: str
) -> tuple[Rank, Stored]:
    weights = Stored(folder, change)
    return Rank(EngineConfig(model=str(folder), device="cpu", **options), Mesh(), CPU, weights=weights), weights


def matrices(rank: Rank) -> dict[str, ParallelMatrix]:
    modules = {**dict(rank.model.transformer.named_modules()), **dict(rank.model.text_encoder.named_modules())}
    return {name: module for name, module in modules.items() if isinstance(module, ParallelMatrix)}


@pytest.mark.parametrize("weight_format", ["fp8", "int8"])
def test_what_a_file_has_in_8_bits_stays_so_and_means_the_same(turbo: Path, weight_format: WeightFormat) -> None:
    rank, weights = rank_of(turbo, matrices_as(weight_format))
    eight_bit = {name: matrix for name, matrix in matrices(rank).items() if matrix.weight_scale is not None}
    assert eight_bit.keys() >= {
        f"transformer_blocks.0.{name}" for name in ("attn.qkvg", "attn.out", "ff.gate_up", "ff.down")
    }
    assert any(name.startswith("text_fusion.") for name in eight_bit)
    assert any(name.startswith("layers.") for name in eight_bit)
    by_parameter: dict[str, list[Source]] = {}
    for source in (source for component in weights.sources.values() for source in component):
        by_parameter.setdefault(source.parameter, []).append(source)
    x = torch.randn(5, 64)
    for name, matrix in eight_bit.items():
        dense = torch.cat([weights.kept[source.name].dense for source in by_parameter[f"{name}.weight"]])  # type: ignore[attr-defined]
        assert matrix.weight.dtype == (FP8 if weight_format == "fp8" else torch.int8)
        assert torch.equal(matrix.dequantize(), dense)
        x = torch.randn(5, dense.shape[1])
        assert not matrix.takes_fp8  # a CPU has no such products
        torch.testing.assert_close(matrix.multiply(x), x @ dense.T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("weight_format", ["fp8", "int8"])
def test_none_dequantises_and_fp8_and_int8_requantise_the_blocks(turbo: Path, weight_format: WeightFormat) -> None:
    none, _ = rank_of(turbo, matrices_as(weight_format), quantization="none")
    assert all(matrix.weight_scale is None for matrix in matrices(none).values())
    auto, _ = rank_of(turbo, matrices_as(weight_format))
    assert auto.memory()["weights"] < 0.6 * none.memory()["weights"]
    for quantization, dtype in (("fp8", FP8), ("int8", torch.int8)):
        rank, _ = rank_of(turbo, matrices_as(weight_format), quantization=quantization)
        for name, matrix in matrices(rank).items():
            asked = in_blocks(f"{name}.weight")
            if asked and matrix.weight.shape[1] % 32 == 0:
                assert matrix.weight.dtype == dtype
            assert matrix.takes_fp8 == (asked and quantization == "fp8")


def test_fp8_of_the_file_is_multiplied_as_fp8_where_the_device_can_and_the_file_allows(
    turbo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("rank.build", "offload.offload"):
        monkeypatch.setattr(f"engine.{module}.multiplies_fp8", lambda device, dtype: True)
    rank, _ = rank_of(turbo, matrices_as("fp8", full_precision="attn.to_out"))
    for name, matrix in matrices(rank).items():
        fits = all(length % 16 == 0 for length in matrix.weight.shape)
        assert matrix.takes_fp8 == (in_blocks(f"{name}.weight") and "attn.out" not in name and fits), name
    whole = [matrix for matrix in matrices(rank).values() if matrix.weight_scale is not None and not matrix.takes_fp8]
    assert rank.model.offload.plan.sizes.dequantized == 4 * max(matrix.weight.numel() for matrix in whole)


def test_a_parameter_of_which_a_file_quantised_a_part_is_dequantised(turbo: Path) -> None:
    def change(source: Source, tensor: StoredTensor) -> StoredTensor:
        return EightBit(tensor, "fp8") if source.name.endswith("to_q.weight") else tensor

    rank, _ = rank_of(turbo, change)
    assert all(matrix.weight_scale is None for matrix in matrices(rank).values())


@pytest.mark.parametrize("damage", ["scale", "value"])
def test_numbers_that_are_none_are_found_in_8_bits_too(turbo: Path, damage: str) -> None:
    def change(source: Source, tensor: StoredTensor) -> StoredTensor:
        if source.name != "transformer_blocks.0.ff.down.weight":
            return tensor
        stored = EightBit(tensor, "fp8")
        if damage == "scale":
            stored.scales = torch.full_like(stored.scales, float("nan"))
        else:
            stored.values.view(torch.uint8)[0, 0] = 0xFF
        return stored

    with pytest.raises(CheckpointError, match=r"transformer_blocks\.0\.ff\.down\.weight: holds values that are not"):
        rank_of(turbo, change)


@pytest.mark.parametrize("weight_format", ["fp8", "int8"])
def test_few_numbers_at_a_time_become_8_bits(turbo: Path, weight_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a matrix whose whole would take four times its memory in float32, and the same comes out."""

    def parameters() -> dict[str, torch.Tensor]:
        rank = Rank(EngineConfig(model=str(turbo), quantization=weight_format), Mesh(), CPU)
        return dict(rank.model.transformer.named_parameters())

    expected = parameters()
    seen = []
    name = {"fp8": "quantize_rows", "int8": "quantize_groups"}[weight_format]
    quantize = getattr(load, name)

    def watched(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(values.numel())
        return quantize(values)

    monkeypatch.setattr(load, "_AT_ONCE", 1000)
    monkeypatch.setattr(load, name, watched)
    for name, parameter in parameters().items():
        assert torch.equal(parameter.view(torch.uint8), expected[name].view(torch.uint8))
    assert 0 < max(seen) <= 1000


def test_products_in_bfloat16_lose_no_more_than_a_rounding() -> None:
    dense = torch.randn(48, 64)
    for quantize in (_fp8_rows, quantize_groups):
        values, scales = quantize(dense)
        matrix = RowParallelLinear(64, 48, LocalGroup())
        matrix.requires_grad_(False)
        matrix.expect_eight_bit(scales, fp8_product=False)
        matrix.load_state_dict({"weight": values, "weight_scale": scales}, assign=True)
        x = torch.randn(33, 64).bfloat16()
        expected = x.double() @ matrix.dequantize().double().T
        error = (matrix(x).double() - expected).norm() / expected.norm()
        assert error < 4e-3  # bfloat16 keeps 8 bits: 1.7e-3 for a rounding, of which there are two


def _fp8_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scales = x.abs().amax(dim=1, keepdim=True) / 448
    return (x / scales).to(FP8), scales
