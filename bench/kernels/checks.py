"""Whether kernels compute what they should: against float64, on fresh random input, over outputs full of NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bench.kernels.cases import Operation, Random, Shape
from bench.kernels.elementwise import elementwise_operations
from bench.kernels.rates import DTYPE, Attention, Product, attention_backends, block_matrices
from bench.measure.lost import raise_if_lost
from engine.kernels.attention.backends import GatedAttentionKernel
from engine.kernels.fp8 import FP8, Fp8Rows

# The rounding of bfloat16 alone makes 1.7e-3 and that of e4m3 2.6e-2. Operations that round twice, as the references
# of the model do, have more; attention's weights are rounded too.
BOUNDS = {torch.bfloat16: 6e-3, FP8: 3.5e-2}
ATTENTION_BOUND = 1e-2
# Rounding queries, keys and values of a normal distribution to e4m3 alone makes 4.8e-2, as computed in float32.
FP8_ATTENTION_BOUND = 1e-1


@dataclass(frozen=True)
class Check:
    """‖output − expected‖ / ‖expected‖ of a kernel's worst output; infinite if it has NaN. failure: what it raised."""

    kernel: str
    tokens: tuple[int, ...]
    tp: int
    error: float
    bound: float
    failure: str | None = None

    @property
    def holds(self) -> bool:
        return self.failure is None and self.error <= self.bound


def check_all(
    shape: Shape, device: torch.device, tp: int, begin: Callable[[str], bool] = lambda name: True
) -> Iterator[Check]:
    """Every kernel at one shape; those are left out of which `begin` says False. Raises `DeviceLost` after a check with
    which the GPU is lost."""
    for name, call in _calls(shape, device):
        if not begin(name):
            continue
        lost = None
        try:
            error, bound = call()
            failure = None
        except Exception as raised:  # whatever a kernel raises, the others are worth checking
            error, bound, failure, lost = float("inf"), 0.0, f"{type(raised).__name__}: {raised}", raised
        yield Check(name, shape.packing.lengths, tp, error, bound, failure)
        if lost is not None:
            raise_if_lost(lost)


def _calls(shape: Shape, device: torch.device) -> Iterator[tuple[str, Callable[[], tuple[float, float]]]]:
    for operation in elementwise_operations():
        yield operation.name, _elementwise(operation, shape, device)
    for backend, reason in attention_backends(shape.head_dim, device).items():
        if reason is None:
            yield f"attention {backend}", _attention(backend, shape, device)
    for name, matrix in block_matrices(shape).items():
        for fp8 in (False, True):
            yield f"{name} {'fp8' if fp8 else 'bfloat16'}", _product(matrix, shape, device, fp8=fp8)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖ in float64. NaN counts as infinitely wrong; nothing at all is right."""
    expected = expected.double()
    error = ((actual.double() - expected).norm() / expected.norm().clamp(min=1e-300)).item()
    return error if error == error else float("inf")


def _elementwise(operation: Operation, shape: Shape, device: torch.device) -> Callable[[], tuple[float, float]]:
    def call() -> tuple[float, float]:
        inputs = operation.draw(shape, Random.fresh(device, DTYPE))
        expected = operation.reference(shape, inputs, torch.float64)
        with poisoned():
            outputs = operation.run(shape, inputs)
        errors = []
        for name, output in outputs.items():
            is_fp8 = isinstance(output, Fp8Rows)
            actual = output.dequantize() if isinstance(output, Fp8Rows) else output
            errors.append((relative_error(actual, expected[name]), BOUNDS[FP8 if is_fp8 else DTYPE]))
        return max(errors, key=lambda pair: pair[0] / pair[1])

    return call


def _attention(backend: str, shape: Shape, device: torch.device) -> Callable[[], tuple[float, float]]:
    def call() -> tuple[float, float]:
        one = Attention.draw(shape, Random.fresh(device, DTYPE))
        with poisoned():
            actual = one.run(GatedAttentionKernel(backend))
        bound = FP8_ATTENTION_BOUND if backend == "fa3-fp8" else ATTENTION_BOUND
        return relative_error(actual, one.reference(torch.float64)), bound

    return call


def _product(
    matrix: tuple[int, int], shape: Shape, device: torch.device, *, fp8: bool
) -> Callable[[], tuple[float, float]]:
    def call() -> tuple[float, float]:
        product = Product.draw(shape.packing.tokens, matrix, fp8=fp8, random=Random.fresh(device, DTYPE))
        with poisoned():
            actual = product.run()
        return relative_error(actual, product.reference(torch.float64)), BOUNDS[DTYPE]

    return call


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that is allocated without a value holds NaN in here, so that what a kernel leaves out is seen."""
    flags: Any = torch.utils.deterministic
    before = flags.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    flags.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)  # else cuDNN's attention is refused
    try:
        yield
    finally:
        flags.fill_uninitialized_memory = before[0]
        torch.use_deterministic_algorithms(before[1])
