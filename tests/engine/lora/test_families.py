"""LoRA's relatives, each changing all layers: the latents of a checkpoint whose weights the formulas changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.config.engine_config import EngineConfig
from engine.lora.merge import MergedWeights
from engine.step import Adapter
from tests.engine.lora.adapter_files import divisor_near_root, layer_shapes, merge_plainly, normed, random_matrix, write
from tests.engine_runs import RankGroups, jobs_of, run_requests
from tests.oracle import Picture, Request, relative_error

# float32 rounds differently when the change is added to the weight and when it is added to the output
TOLERANCE = 2e-5
WEIGHT_TOLERANCE = 5e-6
STRENGTH = 0.7
REQUEST = Request("a fox in the snow, oil on canvas", width=96, height=64, steps=3, guidance=1.5)

Tensors = dict[str, torch.Tensor]
# Of a weight: tensors by suffix, and what the weight becomes at strength one.
Drawn = tuple[Tensors, Callable[[torch.Tensor], torch.Tensor]]


def lora(weight: torch.Tensor, generator: torch.Generator) -> Drawn:
    rows, columns = weight.shape
    down, up = random_matrix(3, columns, generator, columns**-0.5), random_matrix(rows, 3, generator, 0.2)
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(6.0)}
    return tensors, lambda w: w + 2.0 * up @ down


def loha(rank: int, weight: torch.Tensor, generator: torch.Generator) -> Drawn:
    rows, columns = weight.shape
    a, c = (random_matrix(rows, rank, generator, 0.4) for _ in "ac")
    b, d = (random_matrix(rank, columns, generator, columns**-0.25) for _ in "bd")
    scale = 0.5 / rank
    tensors = dict(zip(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), (a, b, c, d), strict=True))
    return tensors | {"alpha": torch.tensor([0.5])}, lambda w: w + scale * (a @ b) * (c @ d)


def lokr(factored: str, weight: torch.Tensor, generator: torch.Generator) -> Drawn:
    rows, columns = weight.shape
    a, c = divisor_near_root(rows), divisor_near_root(columns)
    shapes = {"lokr_w1": (a, c), "lokr_w2": (rows // a, columns // c)}
    sizes = {"lokr_w1": 0.3, "lokr_w2": columns**-0.5}
    tensors: Tensors = {"alpha": torch.tensor(5.0)}
    factors = []
    for name, (height, width) in shapes.items():
        if name in factored:
            tensors[f"{name}_a"] = random_matrix(height, 2, generator)
            tensors[f"{name}_b"] = random_matrix(2, width, generator, sizes[name])
            factors.append(tensors[f"{name}_a"] @ tensors[f"{name}_b"])
        else:
            tensors[name] = random_matrix(height, width, generator, sizes[name])
            factors.append(tensors[name])
    scale = 5.0 / 2 if factored else 1.0
    return tensors, lambda w: w + scale * torch.kron(*factors)


def difference(weight: torch.Tensor, generator: torch.Generator) -> Drawn:
    change = random_matrix(*weight.shape, generator, 0.1 * weight.shape[1] ** -0.5)
    return {"diff": change}, lambda w: w + change


def replacement(weight: torch.Tensor, generator: torch.Generator) -> Drawn:
    new = weight + random_matrix(*weight.shape, generator, 0.1 * weight.shape[1] ** -0.5)
    return {"set_weight": new}, lambda w: new


def dora(base: Callable[..., Drawn], shape: str, weight: torch.Tensor, generator: torch.Generator) -> Drawn:
    tensors, change = base(weight, generator)
    dimension = 0 if shape == "(1, K)" else 1
    magnitude = weight.norm(dim=dimension, keepdim=True)
    magnitude = magnitude * (1 + 0.2 * torch.randn(magnitude.shape, generator=generator))
    tensors["dora_scale"] = magnitude.flatten() if shape == "(N)" else magnitude
    return tensors, lambda w: normed(change(w), magnitude, dimension)


FAMILIES: dict[str, Callable[[torch.Tensor, torch.Generator], Drawn]] = {
    "LoRA": lora,
    "LoHa": lambda *a: loha(2, *a),
    "LoHa of so high a rank that it is held dense": lambda *a: loha(12, *a),
    "LoKr": lambda *a: lokr("", *a),
    "LoKr, second factor factored": lambda *a: lokr("lokr_w2", *a),
    "LoKr, both factored": lambda *a: lokr("lokr_w1 lokr_w2", *a),
    "difference": difference,
    "replacement": replacement,
    "DoRA": lambda *a: dora(lora, "(N)", *a),
    "DoRA of rows as a matrix": lambda *a: dora(lora, "(N, 1)", *a),
    "DoRA of columns": lambda *a: dora(lora, "(1, K)", *a),
    "DoRA with LoHa": lambda *a: dora(lambda *b: loha(2, *b), "(N)", *a),
    "DoRA with LoKr": lambda *a: dora(lambda *b: lokr("lokr_w2", *b), "(N, 1)", *a),
}


@dataclass(frozen=True)
class Expected:
    """A family's file, which changes all biases too, and a copy of the checkpoint whose weights the formulas changed,
    to W + s · (W′ − W), with the picture that it draws."""

    file: Path
    weights: dict[str, torch.Tensor]
    picture: Picture


def draw(family: Callable[[torch.Tensor, torch.Generator], Drawn], checkpoint: Path, folder: Path) -> Expected:
    generator = torch.Generator().manual_seed(0)
    layers = layer_shapes(checkpoint)
    tensors: Tensors = {}
    weights: Tensors = {}

    def changed(name: str, value: torch.Tensor) -> torch.Tensor:
        layer, _, kind = name.rpartition(".")
        if layer not in layers or kind not in ("weight", "bias"):
            return value
        if kind == "bias":
            tensors[f"transformer.{layer}.diff_b"] = torch.randn(value.shape, generator=generator) * 0.1
            return value + STRENGTH * tensors[f"transformer.{layer}.diff_b"]
        drawn, apply = family(value, generator)
        tensors.update({f"transformer.{layer}.{suffix}": tensor for suffix, tensor in drawn.items()})
        return value + STRENGTH * (apply(value) - value)

    def change(name: str, value: torch.Tensor) -> torch.Tensor:
        weights[name] = changed(name, value)
        return weights[name]

    merged = merge_plainly(checkpoint, folder / "merged", change)
    (picture,) = run_requests(merged, [REQUEST])
    return Expected(write(folder / "adapter.safetensors", tensors), weights, picture)


@pytest.fixture(scope="module")
def plain(turbo: Path, rank_groups: RankGroups) -> Picture:
    """Without an adapter."""
    (picture,) = rank_groups.run_requests(turbo, [REQUEST])
    return picture


@pytest.fixture(scope="module", params=FAMILIES)
def expected(
    request: pytest.FixtureRequest, turbo: Path, plain: Picture, tmp_path_factory: pytest.TempPathFactory
) -> Expected:
    expected = draw(FAMILIES[request.param], turbo, tmp_path_factory.mktemp("family"))
    assert relative_error(plain.latents, expected.picture.latents) > 0.1, "a change that nobody would miss"
    return expected


def run(rank_groups: RankGroups, folder: Path, file: Path, *, tp: int = 1) -> Picture:
    jobs = [replace(job, loras=((7, STRENGTH),)) for job in jobs_of(folder, [REQUEST])]
    (picture,) = rank_groups.run_jobs(folder, jobs, tp=tp, adapters=[Adapter(7, str(file))])
    return picture


@pytest.mark.parametrize("tp", [1, 4])
def test_latents_beside_the_weights_are_those_of_changed_ones(
    turbo: Path, rank_groups: RankGroups, expected: Expected, tp: int
) -> None:
    picture = run(rank_groups, turbo, expected.file, tp=tp)
    assert relative_error(picture.latents, expected.picture.latents) <= TOLERANCE


def test_weights_that_an_adapter_is_merged_into_are_the_changed_ones_on_every_rank(
    turbo: Path, expected: Expected
) -> None:
    config = EngineConfig(model=str(turbo), merge_loras=((str(expected.file), STRENGTH),))
    merged = MergedWeights(CheckpointFiles.open(config), config)
    assert {source.name for source in merged.sources["transformer"]} == expected.weights.keys()
    for source in merged.sources["transformer"]:
        stored, weight = merged.stored("transformer", source), expected.weights[source.name]
        for bounds in (source.shard_bounds(rank, tp) for tp in (1, 2, 4) for rank in range(tp)):
            assert relative_error(stored.read(bounds), weight[bounds]) <= WEIGHT_TOLERANCE, (source.name, bounds)
    merged.close()


# What ranks read of merged weights is compared above for every family and share; that it is what a rank computes with
# is the same for all families, and the first of them guards it.
@pytest.mark.parametrize("tp", [1, 4])
@pytest.mark.parametrize(
    "expected",
    [name if name == "LoRA" else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
    indirect=True,
)
def test_latents_of_merged_weights_are_those_of_changed_ones(turbo: Path, expected: Expected, tp: int) -> None:
    (picture,) = run_requests(turbo, [REQUEST], tp=tp, merge_loras=((str(expected.file), STRENGTH),))
    assert relative_error(picture.latents, expected.picture.latents) <= TOLERANCE


@pytest.fixture(scope="module")
def kronecker(turbo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Picture]:
    """A file with a Kronecker product for q, k and v as one matrix, and the expected picture."""
    folder = tmp_path_factory.mktemp("kronecker")
    generator = torch.Generator().manual_seed(1)
    prefix = "text_fusion.layerwise_blocks.0.attn."
    first, second = random_matrix(8, 8, generator, 0.4), random_matrix(24, 8, generator, 0.2)
    whole = torch.kron(first, second)
    parts = dict(zip((f"{prefix}to_{part}.weight" for part in "qkv"), whole.split(64), strict=True))

    def change(name: str, value: torch.Tensor) -> torch.Tensor:
        return value + STRENGTH * parts[name] if name in parts else value

    (picture,) = run_requests(merge_plainly(turbo, folder / "merged", change), [REQUEST])
    path = "lycoris_text_fusion_layerwise_blocks_0_attn_to_qkv"
    return write(folder / "lokr.safetensors", {f"{path}.lokr_w1": first, f"{path}.lokr_w2": second}), picture


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_kronecker_products_of_fused_matrices_are_split_anywhere(
    turbo: Path, rank_groups: RankGroups, kronecker: tuple[Path, Picture], plain: Picture, tp: int
) -> None:
    """A block of 24 rows of the product lies across the border of q and k, and across those of the ranks' shares."""
    file, expected = kronecker
    assert relative_error(run(rank_groups, turbo, file, tp=tp).latents, expected.latents) <= TOLERANCE
    assert relative_error(plain.latents, expected.latents) > 100 * TOLERANCE


def test_a_bias_may_be_given_to_a_layer_that_has_none(
    turbo: Path, rank_groups: RankGroups, plain: Picture, tmp_path: Path
) -> None:
    """Where columns are split, ranks' outputs are summed up, and the bias must be in the sum once."""
    file = write(tmp_path / "bias.safetensors", {"blocks.0.attn.wo.diff_b": torch.randn(128)})
    alone, split = (run(rank_groups, turbo, file, tp=tp) for tp in (1, 4))
    assert relative_error(split.latents, alone.latents) <= TOLERANCE
    assert relative_error(plain.latents, alone.latents) > 100 * TOLERANCE
