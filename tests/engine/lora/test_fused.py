"""Every kind of adapter on every matrix, those that files have as one too, beside the weights and merged: the formulas
in float64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.layouts.tensors import COLUMNS, ROWS, Source, sources_by_parameter, transformer_sources
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import LoraError
from engine.lora.families import layer_of
from engine.lora.files import open_adapter
from engine.lora.merge import MergedWeights
from engine.rank.rank import Rank
from engine.step import Adapter
from tests.engine.lora.adapter_files import layer_shapes, merge_plainly, write
from tests.engine.lora.random_changes import KINDS, RandomChange, read_weights, write_random
from tests.engine_runs import RankGroups, jobs_of, run_requests
from tests.oracle import Request, expected_latents, relative_error

TOLERANCE = 1e-5
PLAIN, TOKENS = 2, 5  # rows without an adapter, and all
REQUEST = Request("a fox in the snow, oil on canvas", width=64, height=64, steps=2)
FUSED_FILES = 5  # of 7 blocks each, so that q, k and v as one are changed in each of the kinds
STRENGTHS = (1.0, -0.6, 1.7, 0.35, -1.3)

Weights = dict[str, torch.Tensor]  # by layer
File = tuple[Path, list[RandomChange], float]  # with what it does, and its strength


@pytest.fixture(scope="module")
def weights(turbo: Path) -> Weights:
    return read_weights(turbo)


@pytest.fixture(scope="module")
def files(turbo: Path, tmp_path_factory: pytest.TempPathFactory) -> list[File]:
    """Files, what they do and their strengths."""
    folder = tmp_path_factory.mktemp("changes")
    written = []
    for seed in range(FUSED_FILES + 1):
        file = folder / f"{seed}.safetensors"
        changes = write_random(turbo, file, seed, fused=seed < FUSED_FILES)
        written.append((file, changes, STRENGTHS[seed % len(STRENGTHS)]))
    return written


def of_layers(folder: Path) -> dict[str, Source]:
    config = ModelConfig.from_folder(folder).transformer
    sources = {source.name: source for source in transformer_sources(config)}
    return {layer: sources[f"{layer}.weight"] for layer in layer_shapes(folder)}


def differences(changes: list[RandomChange], weights: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """W' − W of each layer, in float64."""
    for change in changes:
        parts = [weights[layer].double() for layer in change.layers]
        difference = change.changed(torch.cat(parts)) - torch.cat(parts)
        yield from zip(change.layers, difference.split([len(part) for part in parts]), strict=True)


def pairs(files: list[File]) -> Iterator[list[File]]:
    """Two files at a time, each of which adds its change of what the checkpoint has."""
    return map(list, zip(files[::2], files[1::2], strict=True))


def sums(pair: list[File], weights: Mapping[str, torch.Tensor]) -> Weights:
    """What both files add to each layer's weight, in float64."""
    of_files = [dict(differences(changes, weights)) for _, changes, _ in pair]
    strengths = [strength for _, _, strength in pair]
    return {layer: sum(s * of[layer] for s, of in zip(strengths, of_files, strict=True)) for layer in weights}


def test_q_k_and_v_as_one_are_changed_in_every_way(files: list[File]) -> None:
    for place in ("transformer_blocks.", "layerwise_blocks.", "refiner_blocks."):
        fused = [
            each for _, changes, _ in files for each in changes if len(each.layers) == 3 and place in each.layers[0]
        ]
        assert {magnitudes for _, magnitudes in (each.kind for each in fused)} >= {"", "(N,)", "(N, 1)", "(1, K)"}
    assert {each.kind for _, changes, _ in files for each in changes if len(each.layers) == 3} == set(KINDS)
    assert {each.kind for _, changes, _ in files for each in changes if len(each.layers) == 1} == set(KINDS)


_SLOW = [(1, "none"), (2, "none"), (4, "none"), (1, "fp8"), (4, "fp8")]  # of which the other has a part each


@pytest.mark.parametrize(
    ("tp", "quantization"), [(2, "int8"), *(pytest.param(*mode, marks=pytest.mark.slow) for mode in _SLOW)]
)
def test_what_is_added_beside_the_weights_is_that_of_the_formulas(
    turbo: Path,
    rank_groups: RankGroups,
    files: list[File],
    tp: int,
    quantization: str,
) -> None:
    sources = of_layers(turbo)
    modules = sources_by_parameter(sources.values())  # those that have layers, by the name of their weight
    generator = torch.Generator().manual_seed(3)
    x = {name: torch.randn(TOKENS, parts[0].shape[1], generator=generator) for name, parts in modules.items()}

    def run(rank: Rank) -> tuple[Weights, list[Weights], list[int]]:
        """This rank's weights as it holds them, by layer, and of two files what they add to outputs, and all bytes."""
        held: Weights = {}
        added: list[Weights] = []
        sizes = []
        for pair in pairs(files):
            for number, (file, _, _) in enumerate(pair):
                rank.adapters.load(Adapter(number, str(file)))
            sizes.append(rank.adapters.bytes)
            added.append({})
            loras = tuple((number, strength) for number, (_, _, strength) in enumerate(pair))
            rows = [((), PLAIN), (loras, TOKENS - PLAIN)]
            with rank.adapters.by_row(rows, rows, rows):
                for name, parts in modules.items():
                    module = rank.model.transformer.get_submodule(name.removesuffix(".weight"))
                    weight, heights = module.dequantize(), [source.shard_shape(tp)[0] for source in parts]
                    own = x[name][:, parts[0].shard_bounds(rank.model.mesh.tp.rank, tp)[1]]
                    before = own @ weight.t()
                    if getattr(module, "bias", None) is not None:
                        before += module.bias
                    module.side_path(own, y := before.clone())
                    of_layer = zip(parts, weight.split(heights), (y - before).split(heights, dim=1), strict=True)
                    for source, held_weight, of_source in of_layer:
                        held[layer_of(source)], added[-1][layer_of(source)] = held_weight, of_source
            for number in range(len(pair)):
                rank.adapters.unload(number)
        return held, added, sizes

    ranks = rank_groups.on_ranks(turbo, run, tp=tp, quantization=quantization)
    held = {layer: together(source, [each[layer] for each, _, _ in ranks]) for layer, source in sources.items()}
    for number, pair in enumerate(pairs(files)):
        for layer, difference in sums(pair, held).items():
            source = sources[layer]
            parts = [added[number][layer] for _, added, _ in ranks]
            found = sum(parts) if source.split == COLUMNS else torch.cat(parts, 1) if source.split == ROWS else parts[0]
            assert not found[:PLAIN].any()
            expected = x[source.parameter][PLAIN:].double() @ difference.t()
            assert relative_error(found[PLAIN:], expected) <= TOLERANCE, (layer, number)
        config = ModelConfig.from_folder(turbo)
        said = sum(open_adapter(file, config).bytes_on_rank(tp, 4) for file, _, _ in pair)
        assert 0.99 * said <= max(sizes[number] for _, _, sizes in ranks) <= said


def together(source: Source, shares: list[torch.Tensor]) -> torch.Tensor:
    return shares[0] if source.split is None else torch.cat(shares, source.split)


def test_merged_weights_are_those_of_the_formulas_on_every_rank(
    turbo: Path, weights: Weights, files: list[File]
) -> None:
    for tp, pair in zip((4, 2, 1), pairs(files), strict=True):
        loras = tuple((str(file), strength) for file, _, strength in pair)
        config = EngineConfig(model=str(turbo), merge_loras=loras)
        merged = MergedWeights(CheckpointFiles.open(config), config)
        changes = sums(pair, weights)
        for layer, source in of_layers(turbo).items():
            stored = merged.stored("transformer", source)
            for bounds in (source.shard_bounds(rank, tp) for rank in range(tp)):
                expected = (weights[layer].double() + changes[layer])[bounds]
                assert relative_error(stored.read(bounds), expected) <= TOLERANCE, (layer, bounds)
        merged.close()


@pytest.fixture(scope="module")
def plain(turbo: Path, rank_groups: RankGroups) -> torch.Tensor:
    (picture,) = rank_groups.run_requests(turbo, [REQUEST])
    return picture.latents


def beside(rank_groups: RankGroups, folder: Path, file: Path, strength: float, *, tp: int = 1) -> torch.Tensor:
    jobs = [replace(job, loras=((7, strength),)) for job in jobs_of(folder, [REQUEST])]
    (picture,) = rank_groups.run_jobs(folder, jobs, tp=tp, adapters=[Adapter(7, str(file))])
    return picture.latents


@pytest.mark.parametrize("tp", [2, *(pytest.param(tp, marks=pytest.mark.slow) for tp in (1, 4))])
def test_latents_are_those_of_diffusers_with_the_changed_weights(
    turbo: Path,
    rank_groups: RankGroups,
    files: list[File],
    weights: Weights,
    plain: torch.Tensor,
    tmp_path: Path,
    tp: int,
) -> None:
    file, changes, _ = files[0]
    changed = {f"{layer}.weight": difference for layer, difference in differences(changes, weights)}
    folder = merge_plainly(
        turbo, tmp_path / "changed", lambda name, old: (old + 0.3 * changed[name]).float() if name in changed else old
    )
    (expected,) = expected_latents(folder, REQUEST)
    assert relative_error(plain, expected) > 0.1
    assert relative_error(beside(rank_groups, turbo, file, 0.3, tp=tp), expected) <= 1e-4
    (merged,) = run_requests(turbo, [REQUEST], tp=tp, merge_loras=((str(file), 0.3),))
    assert relative_error(merged.latents, expected) <= 1e-4


@pytest.mark.parametrize("magnitudes", ["(1, K)", pytest.param("(N, 1)", marks=pytest.mark.slow)])
def test_an_adapter_that_changes_nothing_changes_nothing(
    turbo: Path, rank_groups: RankGroups, weights: Weights, plain: torch.Tensor, tmp_path: Path, magnitudes: str
) -> None:
    tensors = {}
    for layer in (layer.removesuffix("_q") for layer in weights if layer.endswith("_q")):
        stacked = torch.cat([weights[f"{layer}_{part}"] for part in "qkv"])
        tensors[f"{layer}_qkv.lokr_w1"] = torch.zeros(1, 1)
        tensors[f"{layer}_qkv.lokr_w2"] = torch.randn(stacked.shape)
        norms = stacked.norm(dim=0 if magnitudes == "(1, K)" else 1, keepdim=True)
        tensors[f"{layer}_qkv.dora_scale"] = norms
    file = write(tmp_path / "nothing.safetensors", tensors)
    for strength in (1.0, -2.0):
        assert relative_error(beside(rank_groups, turbo, file, strength, tp=2), plain) <= 2e-5
    (merged,) = run_requests(turbo, [REQUEST], merge_loras=((str(file), 1.0),))
    assert relative_error(merged.latents, plain) <= 2e-5


@pytest.mark.parametrize(
    "name",
    ["attn.qkv", "attn.wqkv", "attn.to_kv", "attn.to_qkv_gate", "attn.to_added_qkv", "ff.gate_up", "mlp.gate_up"],
)
def test_what_no_trainer_has_as_one_matrix_is_refused_by_name(turbo: Path, tmp_path: Path, name: str) -> None:
    """A row that is taken for another's would be a wrong picture."""
    tensors = {f"blocks.0.{path}.diff": torch.zeros(512, 128) for path in ("attn.to_qkv", name)}
    tensors["blocks.0.attn.to_qkv.diff"] = torch.zeros(256, 128)
    file = write(tmp_path / "other.safetensors", tensors)
    with pytest.raises(LoraError, match=rf"for no layer of Krea 2: blocks\.0\.{name}\.diff"):
        open_adapter(file, ModelConfig.from_folder(turbo))
