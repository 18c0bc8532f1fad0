"""The kernels that compute rather than move: attention by each backend, and the matrix products of a block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from bench.kernels import references
from bench.kernels.cases import Random, Shape
from bench.kernels.timing import input_sets, time_kernel
from engine.kernels.attention.backends import BACKENDS, GatedAttentionKernel
from engine.kernels.attention.choice import unavailable
from engine.kernels.fp8 import Fp8Rows, fp8_linear, quantize_rows
from engine.kernels.packing import Packing
from engine.planning.floor import Ceilings

DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Rate:
    """One matrix product or attention, in seconds. share: of the ceiling of a large matrix product in its dtype."""

    kernel: str
    tokens: int
    side: int | None
    tp: int
    median_s: float
    p10_s: float
    p90_s: float
    repeats: int
    flops_per_s: float
    share: float


@dataclass(frozen=True)
class Attention:
    """What one backend attends to."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    gate: torch.Tensor
    packing: Packing

    @classmethod
    def draw(cls, shape: Shape, random: Random) -> Attention:
        matrix = random.normal(shape.packing.tokens, sum(shape.qkvg_columns))
        *qkv, gate = matrix.split(shape.qkvg_columns, dim=1)
        query, key, value = (part.unflatten(1, (-1, shape.head_dim)) for part in qkv)
        return cls(query, key, value, gate, shape.packing)

    def run(self, kernel: GatedAttentionKernel) -> torch.Tensor:
        output = kernel(self.query, self.key, self.value, self.gate, self.packing)
        assert isinstance(output, torch.Tensor)
        return output

    def reference(self, dtype: torch.dtype) -> torch.Tensor:
        attended = references.attention(self.query, self.key, self.value, self.packing, dtype)
        return references.sigmoid_mul(attended, self.gate, dtype)

    @property
    def flops(self) -> float:
        return 4.0 * self.query.shape[1] * self.query.shape[2] * sum(length**2 for length in self.packing.lengths)


def attention_backends(head_dim: int, device: torch.device) -> dict[str, str | None]:
    """Every backend, and why it does not run here, or None. Triton's interpreter, whose bfloat16 is not that of any
    GPU, does not count."""
    reasons = {backend: unavailable(backend, device, DTYPE, head_dim) for backend in BACKENDS}
    if device.type != "cuda":
        reasons["triton"] = f"it needs a CUDA device, not {device.type}"
    return reasons


def time_attention(backend: str, shape: Shape, device: torch.device, tp: int, ceilings: Ceilings) -> Rate:
    """Gate included. Raises whatever the backend raises."""
    kernel = GatedAttentionKernel(backend)
    first = Attention.draw(shape, Random.fresh(device, DTYPE))
    size = sum(tensor.numel() * tensor.element_size() for tensor in (first.query, first.key, first.value, first.gate))
    more = [Attention.draw(shape, Random.fresh(device, DTYPE)) for _ in range(input_sets(size, device) - 1)]
    spread = time_kernel([_runs(one, kernel) for one in (first, *more)], device)
    rate = first.flops / spread.median
    share = rate / ceilings.matmul_flops
    return Rate(
        f"attention {backend}", shape.packing.tokens, shape.side, tp,
        spread.median, spread.p10, spread.p90, spread.count, rate, share,
    )  # fmt: skip


def block_matrices(shape: Shape) -> dict[str, tuple[int, int]]:
    """(out, in) of a rank's part of a block's matrices."""
    attended = shape.heads * shape.head_dim
    return {
        "q|k|v|gate": (sum(shape.qkvg_columns), shape.width),
        "out": (shape.width, attended),
        "gate|up": (2 * shape.intermediate, shape.width),
        "down": (shape.width, shape.intermediate),
    }


@dataclass(frozen=True)
class Product:
    """x Wᵀ of random numbers."""

    x: torch.Tensor | Fp8Rows
    weight: torch.Tensor | Fp8Rows

    @classmethod
    def draw(cls, tokens: int, matrix: tuple[int, int], *, fp8: bool, random: Random) -> Product:
        rows, columns = matrix
        x, weight = random.normal(tokens, columns), random.normal(rows, columns)
        return cls(quantize_rows(x), quantize_rows(weight)) if fp8 else cls(x, weight)

    def run(self) -> torch.Tensor:
        if isinstance(self.x, Fp8Rows):
            assert isinstance(self.weight, Fp8Rows)
            return fp8_linear(self.x, self.weight)
        assert isinstance(self.weight, torch.Tensor)
        return F.linear(self.x, self.weight)

    def run_in_pieces(self, pieces: Sequence[int], out: torch.Tensor) -> None:
        """Multiply the same, `pieces` rows after each other, into `out`."""
        first = 0
        for rows in pieces:
            part = slice(first, first + rows)
            first += rows
            if isinstance(self.x, Fp8Rows):
                assert isinstance(self.weight, Fp8Rows)
                fp8_linear(Fp8Rows(self.x.values[part], self.x.scales[part], self.x.dtype), self.weight, out[part])
            else:
                assert isinstance(self.weight, torch.Tensor)
                torch.mm(self.x[part], self.weight.t(), out=out[part])

    def reference(self, dtype: torch.dtype) -> torch.Tensor:
        """Of the numbers as they are after rounding to fp8."""
        x, weight = (
            part.dequantize().to(dtype) if isinstance(part, Fp8Rows) else part.to(dtype)
            for part in (self.x, self.weight)
        )
        return x @ weight.T


def time_product(
    name: str,
    matrix: tuple[int, int],
    tokens: int,
    device: torch.device,
    tp: int,
    ceilings: Ceilings,
    *,
    fp8: bool,
    pieces: Sequence[int] = (),
) -> Rate:
    """Time one of `block_matrices`; with `pieces`, which add up to `tokens`, as products of these numbers of rows."""
    size = (tokens + matrix[0]) * matrix[1] * (1 if fp8 else DTYPE.itemsize)
    random = Random.fresh(device, DTYPE)
    products = [Product.draw(tokens, matrix, fp8=fp8, random=random) for _ in range(input_sets(size, device))]
    name = f"{name} {'fp8' if fp8 else 'bfloat16'}"
    runs: list[Callable[[], object]] = [product.run for product in products]
    if pieces:
        out = torch.empty((tokens, matrix[0]), dtype=DTYPE, device=device)
        runs = [partial(product.run_in_pieces, pieces, out) for product in products]
        name += f", {' + '.join(map(str, pieces))} rows"
    spread = time_kernel(runs, device)
    rate = 2.0 * tokens * matrix[0] * matrix[1] / spread.median
    ceiling = (ceilings.fp8_flops if fp8 else None) or ceilings.matmul_flops
    return Rate(
        name, tokens, None, tp,
        spread.median, spread.p10, spread.p90, spread.count, rate, rate / ceiling,
    )  # fmt: skip


def _runs(one: Attention, kernel: GatedAttentionKernel) -> Callable[[], object]:
    return lambda: one.run(kernel)
