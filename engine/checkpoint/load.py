"""Fills modules with a rank's share of a checkpoint, in several threads, straight to where it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from engine.checkpoint.files.stored import Bounds, StoredTensor, WeightFormat
from engine.checkpoint.layouts.tensors import Source, sources_by_parameter
from engine.checkpoint.reading import Reading
from engine.checkpoint.weight_format import Weights, choose_weight_format, in_blocks
from engine.errors import ArgumentError, CheckpointError
from engine.kernels.fp8 import FP8, FP8_MULTIPLE, quantize_rows
from engine.kernels.int8 import GROUP, quantize_groups
from engine.parallel.linear import ParallelMatrix

# One thread waits for the disk while another converts; beyond eight, a disk gives no more.
_LEAST_THREADS, _MOST_THREADS = 2, 8
_E4M3_NAN = 0x7F  # and with the sign bit set
# Numbers that a thread copies or quantises at once: while weights are loaded there may be little memory beside them,
# and a slow disk takes a while over more.
_AT_ONCE = 1 << 22
_LOOK_S = 0.1  # between looks at how much has been read


@dataclass(frozen=True)
class LoadOptions:
    """How weights are kept: on which device, in which dtype (but for those in float32 or in 8 bits), and in which
    quantization. fp8_products: whether the device multiplies the checkpoint's own fp8 matrices as fp8. on_host: whether
    a parameter, by its name, is loaded to host memory instead. reading: counts what is read."""

    device: torch.device
    dtype: torch.dtype
    quantization: str = "auto"
    fp8_products: bool = False
    on_host: Callable[[str], bool] = lambda parameter: False
    reading: Reading = field(default_factory=Reading)


def bytes_to_read(weights: Weights, component: str, *, rank: int, size: int) -> int:
    """Return the bytes of the files that `load_weights` will read, from their headers alone."""
    sources = weights.sources[component]
    return sum(weights.stored(component, source).size(source.shard_bounds(rank, size)) for source in sources)


def load_weights(
    module: nn.Module, weights: Weights, component: str, *, rank: int, size: int, options: LoadOptions
) -> int:
    """Give `module` (built on the meta device) its parameters, reading only the slices that this rank keeps.

    A parameter is allocated once on the device and each of its sources is copied straight into its rows, so no whole
    sharded tensor ever exists on a rank. A matrix gets the format that `choose_weight_format` says; if it is
    quantised here, then as soon as it has been read, and a rank's part of a row has scales of its own.

    Returns the bytes read from the files. Raises `CheckpointError` if a tensor cannot be read or is not finite, and
    `ArgumentError` if fp8 is asked for on a GPU and `FP8_MULTIPLE` does not divide a matrix's sides.
    """

    def load(sources: Sequence[Source]) -> Parameter:
        return read_parameter(sources, weights, component, rank, size, options)

    by_parameter = sources_by_parameter(weights.sources[component])
    threads = min(_MOST_THREADS, max(_LEAST_THREADS, torch.get_num_threads()))
    with ThreadPoolExecutor(threads, thread_name_prefix="load") as executor:
        futures = [executor.submit(load, sources) for sources in by_parameter.values()]
        try:
            loaded = [_wait(future, options.reading) for future in futures]
        finally:
            for future in futures:  # which are done, unless one has failed
                future.cancel()
    state: dict[str, torch.Tensor] = {}
    for name, parameter in zip(by_parameter, loaded, strict=True):
        state[name] = parameter.values
        if parameter.scales is not None:
            state[f"{name}_scale"] = parameter.scales
            matrix = module.get_submodule(name.removesuffix(".weight"))
            assert isinstance(matrix, ParallelMatrix)
            matrix.expect_eight_bit(parameter.scales, fp8_product=parameter.fp8_product)
    module.requires_grad_(False)  # before they are there: int8 has no gradients
    module.load_state_dict(state, strict=True, assign=True)
    return sum(parameter.bytes_read for parameter in loaded)


def _wait(future: Future[Parameter], reading: Reading) -> Parameter:
    while not wait([future], _LOOK_S).done:
        reading.look()
    reading.look()
    return future.result()


class Parameter(NamedTuple):
    """A rank's part of a parameter.

    values: (rows, …), the sources' one below the other, in the model's dtype, float32 or 8 bits. scales: of 8-bit
    values, (rows, 1) float32 or (rows, columns / 32) float16. fp8_product: whether products with it are in fp8.
    """

    values: torch.Tensor
    scales: torch.Tensor | None
    fp8_product: bool
    bytes_read: int


class _Slice(NamedTuple):
    """A rank's part of a tensor. shape: what it has in the parameter. offset: is added to floats."""

    tensor: StoredTensor
    bounds: Bounds
    shape: tuple[int, ...]
    offset: float

    @property
    def size(self) -> int:
        """The bytes of the file that reading it takes."""
        return self.tensor.size(self.bounds)


def read_parameter(
    sources: Sequence[Source], weights: Weights, component: str, rank: int, size: int, options: LoadOptions
) -> Parameter:
    """Read the part of a parameter, which `sources` fill, of one of `size` ranks. See `load_weights`."""
    tensors = [weights.stored(component, source) for source in sources]
    weight_format = choose_weight_format(options.quantization, sources, tensors, size)
    slices = [
        _Slice(tensor, source.shard_bounds(rank, size), source.shard_shape(size), source.offset)
        for source, tensor in zip(sources, tensors, strict=True)
    ]
    device = torch.device("cpu") if options.on_host(sources[0].parameter) else options.device
    scales = None
    if weight_format == "float":
        values = _read_float(slices, device, torch.float32 if sources[0].float32 else options.dtype, options.reading)
        finite = _is_finite(values)
    elif all(tensor.weight_format == weight_format for tensor in tensors):
        values, scales = _read_eight_bit(slices, device, options.reading)
        finite = bool(scales.isfinite().all()) and not (weight_format == "fp8" and _has_nan(values))
    else:
        values, scales, finite = _read_quantized(slices, weight_format, device, options)
    if not finite:
        for each in slices:
            if (error := each.tensor.not_finite(each.bounds)) is not None:
                raise error
        named = ", ".join(tensor.name for tensor in tensors)
        raise CheckpointError.of(tensors[0].file, "holds values that are not finite", name=named)
    is_fp8 = weight_format == "fp8" and in_blocks(sources[0].parameter)
    fp8_product = is_fp8 and _multiplies_fp8(values, tensors, options)
    return Parameter(values, scales, fp8_product, sum(each.size for each in slices))


def _read_float(slices: Sequence[_Slice], device: torch.device, dtype: torch.dtype, reading: Reading) -> torch.Tensor:
    """(rows, …) of floats, copied straight to where they belong."""
    rows = sum(each.shape[0] for each in slices)
    parameter = torch.empty((rows, *slices[0].shape[1:]), device=device, dtype=dtype)
    for each, target in zip(slices, parameter.split([each.shape[0] for each in slices]), strict=True):
        start = 0
        for part in _parts(each.tensor.read(each.bounds).reshape(each.shape), each.size, reading):
            target[start : start + len(part)].copy_(part)
            start += len(part)
        if each.offset:
            target.add_(each.offset)
    return parameter


def _read_eight_bit(
    slices: Sequence[_Slice], device: torch.device, reading: Reading
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and scales of matrices that their file has in 8 bits."""
    read = [each.tensor.read_eight_bit(each.bounds) for each in slices]
    (first, _), height = read[0], sum(each.shape[0] for each in slices)
    values = torch.empty((height, *first.shape[1:]), dtype=first.dtype, device=device)
    start = 0
    for each, (stored, _) in zip(slices, read, strict=True):
        for part in _parts(stored, each.size, reading):
            values[start : start + len(part)] = part
            start += len(part)
    return values, torch.cat([scales for _, scales in read]).to(device)


def _read_quantized(
    slices: Sequence[_Slice], weight_format: WeightFormat, device: torch.device, options: LoadOptions
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Values and scales of matrices that become 8-bit ones, some rows at a time, and whether all were finite."""
    height, width = sum(each.shape[0] for each in slices), slices[0].shape[1]
    int8 = weight_format == "int8"
    groups, of_values, of_scales = (width // GROUP, torch.int8, torch.float16) if int8 else (1, FP8, torch.float32)
    values = torch.empty((height, width), dtype=of_values, device=device)
    scales = torch.empty((height, groups), dtype=of_scales, device=device)
    start, finite = 0, True
    for each in slices:
        for part in _parts(each.tensor.read(each.bounds).reshape(each.shape), each.size, options.reading):
            rows = slice(start, start + len(part))
            chunk = part.to(device, options.dtype)
            finite = finite and _is_finite(chunk)
            values[rows], scales[rows] = quantize_groups(chunk) if int8 else quantize_rows(chunk)[:2]
            start += len(part)
    return values, scales, finite


def _parts(values: torch.Tensor, size: int, reading: Reading) -> Iterator[torch.Tensor]:
    """Give some rows at a time, and count each as read, a part of the `size` bytes, when the next ones are asked for:
    of a mapped file, nothing has been read before somebody touches it."""
    told, done, height = 0, 0, max(1, len(values))
    for part in values.split(max(1, _AT_ONCE * height // max(1, values.numel()))):
        yield part
        done += len(part)
        reading.advance(size * done // height - told)
        told = size * done // height


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
    """Whether any of these e4m3 numbers is NaN."""
    parts = values.view(torch.uint8).flatten().split(_AT_ONCE)
    return any(bool((part & _E4M3_NAN == _E4M3_NAN).any()) for part in parts)


def _is_finite(tensor: torch.Tensor) -> bool:
    low, high = tensor.aminmax()  # NaN if there is one
    return bool(low.isfinite() & high.isfinite())
