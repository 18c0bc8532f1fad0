"""Weights in the forms that other programs publish, and what these stand for, by the programs' own formulas."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from tests.engine.checkpoint.layouts.encoded import metadata_tensor

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_FP4 = (0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4)
FP4 = (*_FP4, *(-value for value in _FP4))


class Published(NamedTuple):
    """tensors: by name, metadata in tensors included. values: (rows, columns) float32."""

    tensors: dict[str, torch.Tensor]
    values: torch.Tensor


def publish(form: str, layer: str, weight: torch.Tensor) -> Published:
    """A (rows, columns) weight in one of `FORMS`."""
    found = _FORMS[form](weight.float())
    tensors = {f"{layer}.{name}": tensor for name, tensor in found.tensors.items()}
    return Published(tensors, found.values)


def _blob(values: Any) -> torch.Tensor:
    return torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8)


def _marked(tensors: dict[str, torch.Tensor], **options: Any) -> dict[str, torch.Tensor]:
    mark = metadata_tensor("", options)
    return tensors | {name.removeprefix("."): tensor for name, tensor in mark.items()}


# ---- bitsandbytes


def _nearest(values: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    return (values.unsqueeze(-1) - codes).abs().argmin(-1)


def _four_bits(kind: str, *, nested: bool, block: int = 64, nested_block: int = 256) -> Callable[..., Published]:
    def make(weight: torch.Tensor) -> Published:
        codes = torch.tensor(NF4 if kind == "nf4" else FP4)
        flat = weight.flatten()
        blocks = torch.nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)
        scales = blocks.abs().amax(1).clamp(min=1e-8)
        state = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": list(weight.shape)}
        tensors = {"weight.absmax": scales, "weight.quant_map": codes}
        if nested:
            offset = scales.mean()
            map_of_scales = torch.linspace(-1, 1, 256)
            of_blocks = torch.nn.functional.pad(scales - offset, (0, -len(scales) % nested_block)).view(
                -1, nested_block
            )
            largest = of_blocks.abs().amax(1).clamp(min=1e-8)
            found = _nearest(of_blocks / largest[:, None], map_of_scales).flatten()[: len(scales)]
            scales = map_of_scales[found] * largest.repeat_interleave(nested_block)[: len(scales)] + offset
            state |= {"nested_blocksize": nested_block, "nested_dtype": "float32", "nested_offset": offset.item()}
            tensors |= {
                "weight.absmax": found.to(torch.uint8),
                "weight.nested_absmax": largest,
                "weight.nested_quant_map": map_of_scales,
            }
        chosen = _nearest(blocks / scales[:, None], codes)
        values = (codes[chosen] * scales[:, None]).flatten()[: len(flat)].view(weight.shape)
        numbers = torch.nn.functional.pad(chosen.flatten()[: len(flat)], (0, len(flat) % 2)).to(torch.uint8)
        tensors["weight"] = (numbers[0::2] * 16 + numbers[1::2]).unsqueeze(1)
        tensors[f"weight.quant_state.bitsandbytes__{kind}"] = _blob(state)
        return Published(tensors, values)

    return make


def _llm_int8(weight: torch.Tensor) -> Published:
    largest = weight.abs().amax(1)
    numbers = (weight / largest[:, None] * 127).round().to(torch.int8)
    tensors = {"weight": numbers, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return Published(tensors, numbers.float() * largest[:, None] / 127)


# ---- optimum-quanto, DeepSeek


def _quanto(dtype: torch.dtype, most: float) -> Callable[..., Published]:
    def make(weight: torch.Tensor) -> Published:
        scales = (weight.abs().amax(1, keepdim=True) / most).bfloat16()
        numbers = weight / scales.float()
        stored = numbers.round().clamp(-most, most).to(dtype) if dtype == torch.int8 else numbers.to(dtype)
        one = torch.ones(())
        tensors = {"weight._data": stored, "weight._scale": scales, "input_scale": one, "output_scale": one.clone()}
        return Published(tensors, stored.float() * scales.float())

    return make


def _squares(dtype: torch.dtype, side: int, scale: str, **options: Any) -> Callable[..., Published]:
    def make(weight: torch.Tensor) -> Published:
        rows, columns = weight.shape
        high, wide = -(-rows // side), -(-columns // side)
        padded = torch.zeros(high * side, wide * side)
        padded[:rows, :columns] = weight
        largest = padded.view(high, side, wide, side).abs().amax((1, 3)).clamp(min=1e-8)
        scales = largest / (127 if dtype == torch.int8 else 448)
        whole = scales.repeat_interleave(side, 0).repeat_interleave(side, 1)[:rows, :columns]
        numbers = weight / whole
        stored = (numbers.round() if dtype == torch.int8 else numbers).to(dtype)
        tensors = {"weight": stored, scale: scales}
        return Published(_marked(tensors, **options) if options else tensors, stored.float() * whole)

    return make


def _rows(weight: torch.Tensor) -> Published:
    scales = weight.abs().amax(1) / 448
    stored = (weight / scales[:, None]).to(torch.float8_e4m3fn)
    tensors = _marked({"weight": stored, "weight_scale": scales}, format="float8_e4m3fn_rowwise")
    return Published(tensors, stored.float() * scales[:, None])


# ---- comfy-kitchen


def _hadamard(size: int) -> torch.Tensor:
    four = torch.tensor([[1.0, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]) / 2
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.kron(matrix, four)
    return matrix


def _rotated(weight: torch.Tensor, size: int) -> torch.Tensor:
    return (weight.unflatten(1, (-1, size)) @ _hadamard(size)).flatten(1)


def _packed(numbers: torch.Tensor) -> torch.Tensor:
    """The low nibble is the even column."""
    low, high = (numbers.to(torch.uint8) & 15).unflatten(1, (-1, 2)).unbind(2)
    return (high * 16 + low).view(torch.int8)


def _int4(group: int | None) -> Callable[..., Published]:
    def make(weight: torch.Tensor) -> Published:
        rotated = weight if group is None else _rotated(weight, group)
        scales = rotated.abs().amax(1, keepdim=True) / 7
        numbers = (rotated / scales).round().clamp(-7, 7)
        options = {"format": "int4_tensorwise"} | (
            {} if group is None else {"convrot": True, "convrot_groupsize": group}
        )
        tensors = _marked(
            {"weight": _packed(numbers.to(torch.int8).view(torch.uint8)), "weight_scale": scales}, **options
        )
        values = numbers * scales
        return Published(tensors, values if group is None else _rotated(values, group))

    return make


def _w4a8(*, codebook: bool, correction: bool, group: int = 16, rotated: int = 64) -> Callable[..., Published]:
    def make(weight: torch.Tensor) -> Published:
        rows, columns = weight.shape
        by_group = _rotated(weight, rotated).view(rows, columns // group, group)
        largest = by_group.abs().amax(2).clamp(min=1e-8)
        levels = torch.linspace(-0.98, 0.98, 16) if codebook else torch.arange(-8.0, 8.0)
        per_level = largest / (1 if codebook else 7)
        channels = largest.amax(1) / 127
        relative = (per_level / channels[:, None]).to(torch.float8_e4m3fn)
        chosen = _nearest(by_group / per_level.unsqueeze(2), levels)
        numbers = (levels[chosen] * relative.float().unsqueeze(2)).round().clamp(-127, 127)
        values = numbers * channels[:, None, None]
        tensors = {
            "weight": _packed(chosen.view(rows, columns)),
            "weight_s_rel": relative,
            "weight_s_channel": channels,
        }
        if codebook:
            tensors["weight_codebook"] = levels
        if correction:
            tensors["weight_correction"] = (by_group - values).mean(2).t().contiguous()
            values = values + tensors["weight_correction"].t().unsqueeze(2)
        marked = _marked(tensors, format="asym_w4a8_int8", group_size=group, convrot_groupsize=rotated)
        return Published(marked, _rotated(values.view(rows, columns), rotated))

    return make


_FP8 = torch.float8_e4m3fn
_FORMS: dict[str, Callable[..., Published]] = {
    "bitsandbytes nf4": _four_bits("nf4", nested=False),
    "bitsandbytes nf4 twice": _four_bits("nf4", nested=True, nested_block=32),
    "bitsandbytes fp4": _four_bits("fp4", nested=False, block=128),
    "bitsandbytes int8": _llm_int8,
    "quanto int8": _quanto(torch.int8, 127),
    "quanto float8": _quanto(_FP8, 448),
    "DeepSeek": _squares(_FP8, 128, "weight_scale_inv"),
    "compressed-tensors": _squares(_FP8, 128, "weight_scale"),
    "fp8 in squares": _squares(_FP8, 64, "weight_scale", format="float8_e4m3fn_blockwise", group_size=64),
    "fp8 a row": _rows,
    "int8 in squares": _squares(torch.int8, 32, "weight_scale", format="int8_blockwise", group_size=32),
    "int4": _int4(None),
    "int4 rotated": _int4(64),
    "w4a8": _w4a8(codebook=True, correction=False),
    "w4a8 without a code book": _w4a8(codebook=False, correction=True, group=4),
}
FORMS = tuple(_FORMS)
