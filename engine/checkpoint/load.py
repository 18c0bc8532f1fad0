"""Fills modules with a rank's share of a checkpoint, in several threads, straight to where it is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import nn

from engine.checkpoint.files.stored import StoredTensor, WeightFormat
from engine.checkpoint.layouts.tensors import Source, sources_by_parameter
from engine.checkpoint.weight_format import Weights, choose_weight_format, in_blocks
from engine.errors import ArgumentError, CheckpointError
from engine.kernels.fp8 import FP8, FP8_MULTIPLE, quantize_rows
from engine.kernels.int8 import GROUP, quantize_groups
from engine.parallel.linear import ParallelMatrix

# One thread waits for the disk while another converts; beyond eight, a disk gives no more.
_LEAST_THREADS, _MOST_THREADS = 2, 8
_E4M3_NAN = 0x7F  # and with the sign bit set
# Numbers that a thread makes 8 bits of at once: while weights are loaded there may be little room beside them.
_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class LoadOptions:
    """How weights are held: on which device, in which dtype (but for those kept in float32 or in 8 bits), and in
    which quantization. fp8_products: the device multiplies fp8 matrices that the checkpoint has as fp8. on_host: which
    parameters, by name, are loaded to host memory instead."""

    device: torch.device
    dtype: torch.dtype
    quantization: str = "auto"
    fp8_products: bool = False
    on_host: Callable[[str], bool] = lambda parameter: False

    def device_of(self, parameter: str) -> torch.device:
        return torch.device("cpu") if self.on_host(parameter) else self.device


def load_weights(
    module: nn.Module, weights: Weights, component: str, *, rank: int, size: int, options: LoadOptions
) -> int:
    """Give `module` (built on the meta device) its parameters, reading only the slices that this rank keeps.

    A parameter is allocated once on the device and each of its sources is copied straight into its rows, so no whole
    sharded tensor ever exists on a rank. A matrix gets the format that `choose_weight_format` says; if it is
    quantised here, then as soon as it has been read, and a rank's part of a row has scales of its own.

    Returns the bytes read of the files. Raises `CheckpointError` if a tensor cannot be read or is not finite.
    """
    by_parameter = sources_by_parameter(weights.sources[component])

    def load(sources: Sequence[Source]) -> Parameter:
        return read_parameter(sources, weights, component, rank, size, options)

    state: dict[str, torch.Tensor] = {}
    threads = min(_MOST_THREADS, max(_LEAST_THREADS, torch.get_num_threads()))
    executor = ThreadPoolExecutor(threads, thread_name_prefix="load")
    try:
        loaded = list(executor.map(load, by_parameter.values()))
    finally:
        executor.shutdown(cancel_futures=True)
    for name, parameter in zip(by_parameter, loaded, strict=True):
        state[name] = parameter.values
        if parameter.scales is not None:
            state[f"{name}_scale"] = parameter.scales
            matrix = module.get_submodule(name.removesuffix(".weight"))
            assert isinstance(matrix, ParallelMatrix)
            matrix.hold_eight_bit(parameter.scales, fp8_product=parameter.fp8_product)
    module.requires_grad_(False)  # before they are there: int8 has no gradients
    module.load_state_dict(state, strict=True, assign=True)
    return sum(parameter.bytes_read for parameter in loaded)


@dataclass(frozen=True)
class Parameter:
    """A rank's part of a parameter as it is held: values, and scales of 8-bit ones. `bytes_read`: of the files."""

    values: torch.Tensor
    scales: torch.Tensor | None
    fp8_product: bool
    bytes_read: int


def read_parameter(
    sources: Sequence[Source], weights: Weights, component: str, rank: int, size: int, options: LoadOptions
) -> Parameter:
    """The parameter that `sources` fill. See `load_weights`."""
    tensors = [weights.stored(component, source) for source in sources]
    weight_format = choose_weight_format(options.quantization, sources, tensors, size)
    as_stored = weight_format != "float" and all(tensor.weight_format == weight_format for tensor in tensors)
    bounds = [source.shard_bounds(rank, size) for source in sources]
    if as_stored:
        parts = [tensor.read_eight_bit(bound) for tensor, bound in zip(tensors, bounds, strict=True)]
        values, scales = (torch.cat(part) for part in zip(*parts, strict=True))
        device = options.device_of(sources[0].parameter)
        values, scales = values.to(device), scales.to(device)
        finite = bool(scales.isfinite().all()) and not (weight_format == "fp8" and _has_nan(values))
    elif weight_format == "float":
        values = _read_float(sources, tensors, bounds, size, options)
        finite = _is_finite(values)
        scales = None
    else:
        values, scales, finite = _read_quantized(weight_format, sources, tensors, bounds, size, options)
    if not finite:
        named = ", ".join(tensor.name for tensor in tensors)
        raise CheckpointError.of(tensors[0].file, "holds values that are not finite", name=named)
    is_fp8 = weight_format == "fp8" and in_blocks(sources[0].parameter)
    fp8_product = is_fp8 and _multiplies_fp8(values, tensors, options)
    read = sum(tensor.size(bound) for tensor, bound in zip(tensors, bounds, strict=True))
    return Parameter(values, scales, fp8_product, read)


def _read_float(
    sources: Sequence[Source],
    tensors: Sequence[StoredTensor],
    bounds: Sequence[tuple[slice, ...]],
    size: int,
    options: LoadOptions,
) -> torch.Tensor:
    shapes = [source.shard_shape(size) for source in sources]
    height = sum(shape[0] for shape in shapes)
    dtype = torch.float32 if sources[0].float32 else options.dtype
    parameter = torch.empty((height, *shapes[0][1:]), device=options.device_of(sources[0].parameter), dtype=dtype)
    start = 0
    for source, tensor, bound, shape in zip(sources, tensors, bounds, shapes, strict=True):
        target = parameter[start : start + shape[0]]
        target.copy_(tensor.read(bound).reshape(shape))
        if source.offset:
            target.add_(source.offset)
        start += shape[0]
    return parameter


def _read_quantized(
    weight_format: WeightFormat,
    sources: Sequence[Source],
    tensors: Sequence[StoredTensor],
    bounds: Sequence[tuple[slice, ...]],
    size: int,
    options: LoadOptions,
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Values and scales of matrices that become 8-bit ones, some rows at a time, and whether all were finite."""
    shapes = [source.shard_shape(size) for source in sources]
    height, width = sum(shape[0] for shape in shapes), shapes[0][1]
    device = options.device_of(sources[0].parameter)
    groups, of_values, of_scales = (
        (width // GROUP, torch.int8, torch.float16) if weight_format == "int8" else (1, FP8, torch.float32)
    )
    values = torch.empty((height, width), dtype=of_values, device=device)
    scales = torch.empty((height, groups), dtype=of_scales, device=device)
    start, finite = 0, True
    for tensor, bound, shape in zip(tensors, bounds, shapes, strict=True):
        for part in tensor.read(bound).reshape(shape).split(max(1, _AT_ONCE // width)):
            rows = slice(start, start + len(part))
            chunk = part.to(device, options.dtype)
            finite = finite and _is_finite(chunk)
            values[rows], scales[rows] = _quantize(chunk, weight_format)
            start += len(part)
    return values, scales, finite


def _quantize(values: torch.Tensor, weight_format: WeightFormat) -> tuple[torch.Tensor, torch.Tensor]:
    if weight_format == "int8":
        return quantize_groups(values)
    rows = quantize_rows(values)
    return rows.values, rows.scales


def _multiplies_fp8(values: torch.Tensor, tensors: Sequence[StoredTensor], options: LoadOptions) -> bool:
    """Whether the product with an fp8 matrix is an fp8 product: always when the user asks for fp8; with a file's own
    fp8, where the device can, the matrix's shape allows it and the file does not ask for full precision."""
    fits = all(length % FP8_MULTIPLE == 0 for length in values.shape)
    if options.quantization != "fp8":
        return options.fp8_products and fits and not any(tensor.full_precision for tensor in tensors)
    if options.device.type == "cuda" and not fits:
        raise ArgumentError(
            f"quantization fp8 needs matrices whose sides {FP8_MULTIPLE} divides, and a rank's is "
            f"{tuple(values.shape)}: use quantization none or fewer ranks",
            parameter="quantization",
        )
    return True


def _has_nan(values: torch.Tensor) -> bool:
    """Of e4m3 numbers."""
    parts = values.view(torch.uint8).flatten().split(_AT_ONCE)
    return any(bool((part & _E4M3_NAN == _E4M3_NAN).any()) for part in parts)


def _is_finite(tensor: torch.Tensor) -> bool:
    low, high = tensor.aminmax()  # NaN if there is one
    return bool(low.isfinite() & high.isfinite())
