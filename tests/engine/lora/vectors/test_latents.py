"""Adapters of norms and modulation tables: the latents of diffusers with changed weights, at every degree, in batches
with other requests, and merged."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.layouts.names import vector_parameters
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.lora.files import open_adapter
from engine.lora.merge import MergedWeights
from engine.parallel.mesh import Mesh
from engine.rank.rank import Rank
from engine.step import Adapter, Job, Step
from tests.engine.lora.adapter_files import (
    draw_low_rank,
    draw_vectors,
    layer_shapes,
    merge_plainly,
    native_names,
    vector_shapes,
    write,
)
from tests.engine_runs import RankGroups, jobs_of
from tests.oracle import Picture, Request, expected_latents, relative_error

TOLERANCE, BATCH_TOLERANCE = 1e-4, 2e-5
STRENGTH = 0.7
LORAS = Request("a fox in the snow", width=64, height=48, steps=2, guidance=1.5)
PLAIN = Request("a red circle on a blue background", width=48, height=64, steps=2, seeds=(1,))
MODES: dict[str, dict[str, Any]] = {
    "tp 1": {},
    "tp 2": {"tp": 2},
    "tp 4": {"tp": 4},
    "sp 2, cfg": {"sp": 2, "cfg_parallel": True},
}
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Expected:
    """An adapter's file, and the weights and latents that `STRENGTH` of it makes of the checkpoint."""

    file: Path
    weights: Tensors
    latents: torch.Tensor


def expect(
    turbo: Path, folder: Path, tensors: Tensors, change: Callable[[str, torch.Tensor], torch.Tensor]
) -> Expected:
    """change: the weight of this name at strength 1."""
    weights: Tensors = {}

    def changed(name: str, value: torch.Tensor) -> torch.Tensor:
        weights[name] = value + STRENGTH * (change(name, value) - value)
        return weights[name]

    merged = merge_plainly(turbo, folder / "merged", changed)
    (latents,) = expected_latents(merged, LORAS, text_tokens=64)
    return Expected(write(folder / "lora.safetensors", tensors), weights, latents)


@pytest.fixture(scope="module")
def like_kroma(turbo: Path, tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """Pairs without .weight of all layers, and differences of all norms and tables, by native names."""
    config = ModelConfig.from_folder(turbo).transformer
    pairs, vectors, natives = draw_low_rank(layer_shapes(turbo)), draw_vectors(turbo), dict(vector_parameters(config))
    tensors: Tensors = {}
    for layer, native in native_names(config).items():
        tensors |= dict(zip((f"diffusion_model.{native}.lora_{part}" for part in "AB"), pairs[layer], strict=True))
    for name, difference in vectors.items():
        flat = natives[name].endswith("mod.lin")
        tensors[f"diffusion_model.{natives[name]}.diff"] = difference.flatten() if flat else difference

    def change(name: str, value: torch.Tensor) -> torch.Tensor:
        if name in vectors:
            return value + vectors[name]
        pair = pairs.get(name.removesuffix(".weight"))
        return value if pair is None else value + pair.up @ pair.down

    return expect(turbo, tmp_path_factory.mktemp("kroma"), tensors, change)


def draw_form(source: random.Random, value: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """Any form that a change of a norm or table may have: its tensors by suffix, and what it makes of the value."""
    generator = torch.Generator().manual_seed(source.randrange(2**32))

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    rows, columns = source.choice([(value.numel() // value.shape[-1], value.shape[-1]), (1, value.numel())])
    if source.random() < 0.2:
        rows, columns = columns, 1
        rows = value.numel()
    difference = draw(rows, columns) if source.random() < 0.5 else draw(*value.shape)
    a, b, c, d = draw(2, columns), draw(rows, 2), draw(3, columns), draw(rows, 3)
    forms: list[tuple[Tensors, torch.Tensor]] = [
        ({"diff": difference}, difference),
        ({"w_norm": difference, "b_norm": torch.zeros(value.shape[-1])}, difference),
        ({"set_weight": value + draw(*value.shape)}, torch.empty(0)),
        ({"lora_A.weight": a, "lora_B.weight": b, "alpha": torch.tensor(3.0)}, 1.5 * b @ a),
        ({"hada_w1_a": b, "hada_w1_b": a, "hada_w2_a": d, "hada_w2_b": c}, (b @ a) * (d @ c)),
        ({"lokr_w1": b[:1, :1], "lokr_w2_a": b, "lokr_w2_b": a}, b[0, 0] * b @ a),
    ]
    tensors, change = source.choice(forms)
    return tensors, tensors["set_weight"] if "set_weight" in tensors else value + change.reshape(value.shape)


@pytest.fixture(scope="module")
def of_any_form(turbo: Path, tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """Norms and tables alone, each by any name and in any form."""
    source = random.Random(0)
    names = dict(vector_parameters(ModelConfig.from_folder(turbo).transformer))
    (weights,) = (turbo / "transformer").glob("*.safetensors")
    tensors, changed = {}, {}
    for name, value in load_file(weights).items():
        if name in names:
            path = source.choice([name, names[name], name.removesuffix(".weight"), names[name].rpartition(".")[0]])
            prefix = source.choice(["diffusion_model.", "lycoris_", "transformer.", ""])
            path = path.replace(".", "_") if prefix == "lycoris_" else path
            drawn, changed[name] = draw_form(source, value)
            tensors |= {f"{prefix}{path}.{suffix}": tensor for suffix, tensor in drawn.items()}
    return expect(turbo, tmp_path_factory.mktemp("forms"), tensors, lambda name, value: changed.get(name, value))


def run(
    rank_groups: RankGroups, turbo: Path, files: list[Expected], loras: list[tuple[tuple[int, float], ...]], **mode: Any
) -> list[Picture]:
    """The picture of `PLAIN` where there are no LoRAs, else of `LORAS`."""
    jobs: list[Job] = [jobs_of(turbo, [LORAS if each else PLAIN])[0] for each in loras]
    jobs = [replace(job, job_id=index, loras=each) for index, (job, each) in enumerate(zip(jobs, loras, strict=True))]
    adapters = [Adapter(index, str(each.file)) for index, each in enumerate(files)]
    return rank_groups.run_jobs(turbo, jobs, adapters=adapters, **mode)


# At tp 2, `test_parallel_steps` holds what one rank makes, which is held here, in the fast run.
@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=pytest.mark.slow) if mode == "tp 2" else mode for mode in MODES]
)
def test_latents_are_those_of_diffusers_and_those_of_others_stay(
    turbo: Path, rank_groups: RankGroups, like_kroma: Expected, of_any_form: Expected, mode: str
) -> None:
    files = [like_kroma, of_any_form]
    (plain,) = run(rank_groups, turbo, [], [()])
    loras = [((0, STRENGTH),), (), ((1, STRENGTH),)]
    first, between, second = run(rank_groups, turbo, files, loras, **MODES[mode])
    for expected, picture in zip(files, (first, second), strict=True):
        assert relative_error(picture.latents, expected.latents) <= TOLERANCE
    assert relative_error(between.latents, plain.latents) <= BATCH_TOLERANCE
    if not MODES[mode]:
        (alone,) = run(rank_groups, turbo, files, [((1, STRENGTH),)])
        assert relative_error(alone.latents, second.latents) <= BATCH_TOLERANCE


def test_the_files_of_these_tests_change_the_image_and_every_parameter(
    turbo: Path, rank_groups: RankGroups, like_kroma: Expected, of_any_form: Expected
) -> None:
    config, vectors, layers = ModelConfig.from_folder(turbo), vector_shapes(turbo), layer_shapes(turbo)
    assert open_adapter(like_kroma.file, config).modules == len(vectors) + len(layers)
    assert open_adapter(of_any_form.file, config).modules == len(vectors)
    (picture,) = rank_groups.run_requests(turbo, [LORAS])
    for expected in (like_kroma, of_any_form):
        assert relative_error(picture.latents, expected.latents) > 0.05


def test_strength_zero_is_none_and_opposite_strengths_are_almost(
    turbo: Path, rank_groups: RankGroups, like_kroma: Expected, of_any_form: Expected
) -> None:
    files = [like_kroma, of_any_form]
    (plain,) = rank_groups.run_requests(turbo, [LORAS])
    (zero,) = run(rank_groups, turbo, files, [((0, 0.0), (1, -0.0))])
    assert torch.equal(plain.latents, zero.latents)
    (both,) = run(rank_groups, turbo, [of_any_form, of_any_form], [((0, 2.0), (1, -2.0))])
    assert relative_error(both.latents, plain.latents) <= BATCH_TOLERANCE


def test_what_is_merged_are_the_changed_weights(turbo: Path, like_kroma: Expected, of_any_form: Expected) -> None:
    for expected in (like_kroma, of_any_form):
        config = EngineConfig(model=str(turbo), merge_loras=((str(expected.file), STRENGTH),))
        merged = MergedWeights(CheckpointFiles.open(config), config)
        for source in merged.sources["transformer"]:
            values = merged.stored("transformer", source).read(source.shard_bounds(0, 1))
            assert relative_error(values, expected.weights[source.name]) <= 5e-6, source.name
        merged.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_is_what_the_file_says_and_is_freed(
    turbo: Path, like_kroma: Expected, of_any_form: Expected, dtype: str
) -> None:
    config, files = ModelConfig.from_folder(turbo), (like_kroma.file, of_any_form.file)
    rank = Rank(EngineConfig(model=str(turbo), device="cpu", dtype=dtype), Mesh(), torch.device("cpu"))
    sizes = [open_adapter(file, config).bytes_on_rank(1, rank.model.dtype.itemsize) for file in files]
    rank.execute(Step(0, load=tuple(Adapter(index, str(file)) for index, file in enumerate(files)))).wait()
    assert rank.memory()["adapters"] == sum(sizes)
    for number, left in ((1, sizes[1]), (2, 0)):
        rank.execute(Step(number, unload=(number - 1,))).wait()
        assert rank.memory()["adapters"] == left
    vectors = [module for module in rank.model.transformer.modules() if hasattr(module, "side_vector")]
    assert len(vectors) == len(vector_shapes(turbo))
    assert all(module.side_vector is None for module in vectors)
