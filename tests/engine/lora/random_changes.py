"""Adapter files that change each matrix in a way of its own, and what the papers' formulas make of the weights.

The formulas are LyCORIS' and PEFT's, of dense matrices in float64; strength s makes W + s · (W' − W) of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file

from tests.engine.lora.adapter_files import divisor_near_root, layer_shapes, random_matrix, write

Tensors = dict[str, torch.Tensor]
Drawn = tuple[Tensors, torch.Tensor]  # by role, and ΔW in float64


def _lora(rows: int, columns: int, generator: torch.Generator) -> Drawn:
    down, up = random_matrix(3, columns, generator, columns**-0.5), random_matrix(rows, 3, generator, 0.2)
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(4.5)}
    return tensors, 1.5 * up.double() @ down.double()


def _loha(rank: int, rows: int, columns: int, generator: torch.Generator) -> Drawn:
    a, c = (random_matrix(rows, rank, generator, 0.4) for _ in "ac")
    b, d = (random_matrix(rank, columns, generator, columns**-0.25) for _ in "bd")
    tensors = dict(zip(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), (a, b, c, d), strict=True))
    change = (a.double() @ b.double()) * (c.double() @ d.double())
    return tensors | {"alpha": torch.tensor([0.5])}, 0.5 / rank * change


def _lokr(factored: Sequence[int], rows: int, columns: int, generator: torch.Generator) -> Drawn:
    height, width = divisor_near_root(rows), divisor_near_root(columns)
    tensors: Tensors = {"alpha": torch.tensor(7.0)}  # which counts for nothing where no factor is factored
    factors = []
    for part, shape, size in ((1, (height, width), 0.4), (2, (rows // height, columns // width), columns**-0.5)):
        matrices = [random_matrix(*shape, generator, size)]
        if part in factored:
            matrices = [random_matrix(shape[0], 2, generator), random_matrix(2, shape[1], generator, size)]
            tensors |= {f"lokr_w{part}_a": matrices[0], f"lokr_w{part}_b": matrices[1]}
        else:
            tensors[f"lokr_w{part}"] = matrices[0]
        factors.append(torch.linalg.multi_dot([m.double() for m in matrices]) if part in factored else matrices[0])
    return tensors, (7.0 / 2 if factored else 1.0) * torch.kron(factors[0].double(), factors[1].double())


_WITH_MAGNITUDES: dict[str, Callable[[int, int, torch.Generator], Drawn]] = {
    "LoRA": _lora,
    "LoHa": lambda *a: _loha(2, *a),
    "LoHa, dense": lambda *a: _loha(12, *a),
    "LoKr": lambda *a: _lokr((), *a),
    "LoKr, first factored": lambda *a: _lokr((1,), *a),
    "LoKr, second factored": lambda *a: _lokr((2,), *a),
    "LoKr, both factored": lambda *a: _lokr((1, 2), *a),
}
KINDS = [
    *((kind, magnitudes) for kind in _WITH_MAGNITUDES for magnitudes in ("", "(N,)", "(N, 1)", "(1, K)")),
    ("difference", ""),
    ("replacement", ""),
]


class RandomChange(NamedTuple):
    """What a file does to the matrices that it has as one. layers: one, or q, k and v. changed: gives W', float64, of
    their weights below each other."""

    layers: tuple[str, ...]
    kind: tuple[str, str]
    changed: Callable[[torch.Tensor], torch.Tensor]


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint's linear layers, by layer."""
    (file,) = (folder / "transformer").glob("*.safetensors")
    tensors = load_file(file)
    return {layer: tensors[f"{layer}.weight"].float() for layer in layer_shapes(folder)}


def write_random(folder: Path, file: Path, seed: int, *, fused: bool) -> list[RandomChange]:
    """Writes a file that changes every linear layer of a checkpoint; the kinds of matrices go round with the seed.
    fused: with each block's q, k and v as one."""
    weights = read_weights(folder)
    generator, order = torch.Generator().manual_seed(seed), random.Random(seed)
    matrices = list(_matrices(folder, fused=fused))
    kinds = KINDS if fused else order.sample(KINDS, len(KINDS))
    tensors: Tensors = {}
    changes = []
    number = {True: 0, False: 0}
    for name, layers in matrices:
        weight = torch.cat([weights[layer] for layer in layers]).double()
        is_fused = len(layers) > 1
        of_fused = sum(len(layers) > 1 for _, layers in matrices)
        kind = kinds[(number[is_fused] + seed * (of_fused if is_fused else 5)) % len(kinds)]
        number[is_fused] += 1
        drawn, changed = _draw(kind, weight, generator)
        changes.append(RandomChange(layers, kind, changed))
        tensors |= {f"{name}.{role}": tensor for role, tensor in drawn.items()}
    write(file, tensors)
    return changes


def _matrices(folder: Path, *, fused: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    for layer in layer_shapes(folder):
        if fused and layer.endswith(".to_q"):
            yield f"{layer}kv", tuple(layer[:-1] + part for part in "qkv")
        elif not fused or not layer.endswith((".to_k", ".to_v")):
            yield layer, (layer,)


def _draw(
    kind: tuple[str, str], weight: torch.Tensor, generator: torch.Generator
) -> tuple[Tensors, Callable[[torch.Tensor], torch.Tensor]]:
    family, magnitudes = kind
    rows, columns = weight.shape
    if family == "difference":
        difference = random_matrix(rows, columns, generator, 0.3 * columns**-0.5)
        return {"diff": difference}, lambda w: w + difference.double()
    if family == "replacement":
        new = (weight + random_matrix(rows, columns, generator, 0.3 * columns**-0.5)).float()
        return {"set_weight": new}, lambda w: new.double()
    tensors, change = _WITH_MAGNITUDES[family](rows, columns, generator)
    if not magnitudes:
        return tensors, lambda w: w + change
    dimension = 0 if magnitudes == "(1, K)" else 1
    magnitude = (weight + change).norm(dim=dimension, keepdim=True)
    magnitude = (magnitude * (1 + 0.3 * torch.randn(magnitude.shape, generator=generator))).float()
    tensors["dora_scale"] = magnitude.flatten() if magnitudes == "(N,)" else magnitude

    def renormed(w: torch.Tensor) -> torch.Tensor:
        return magnitude.double() * (w + change) / (w + change).norm(dim=dimension, keepdim=True)

    return tensors, renormed
