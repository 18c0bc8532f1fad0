"""One adapter of all linear layers, named as each trainer names it: the latents that diffusers and PEFT give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from engine.config.model_config import ModelConfig
from engine.lora.deltas import read_delta
from engine.lora.files import open_adapter
from engine.step import Adapter
from tests.engine.lora.adapter_files import SCHEMES, draw_low_rank, layer_shapes, write, write_scheme
from tests.engine_runs import RankGroups, jobs_of
from tests.oracle import Request, expected_latents, load_pipeline, relative_error

DEGREES = (1, 2, 4)
# Whose tensors ranks cut in their own ways: a matrix a layer, and one for q, k and v together.
SPLIT_SCHEMES = ("1 diffusers", "8 fused")
TOLERANCE = 1e-4
REQUEST = Request("a small yellow star left of a purple heart", width=96, height=64, steps=3)
GUIDED = replace(REQUEST, guidance=2.0, negative_prompt="snow")


@contextmanager
def diffusers_adapters(folder: Path, loras: Sequence[tuple[Path, float]]) -> Iterator[None]:
    pipeline = load_pipeline(folder)
    try:
        names = [f"adapter_{index}" for index in range(len(loras))]
        for name, (file, _) in zip(names, loras, strict=True):
            pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
        pipeline.set_adapters(names, [strength for _, strength in loras])
        yield
    finally:
        pipeline.unload_lora_weights()


def of_diffusers(folder: Path, request: Request, loras: Sequence[tuple[Path, float]]) -> torch.Tensor:
    with diffusers_adapters(folder, loras):
        (latents,) = expected_latents(folder, request, text_tokens=64)
    return latents


OfEngine = Callable[..., torch.Tensor]


@pytest.fixture(scope="module")
def of_engine(turbo: Path, rank_groups: RankGroups) -> OfEngine:
    """`of_engine(request, loras, tp=1)`: the engine's latents with these files, each with its strength."""

    def draw(request: Request, loras: Sequence[tuple[Path, float]], *, tp: int = 1) -> torch.Tensor:
        adapters = [Adapter(index, str(file)) for index, (file, _) in enumerate(loras)]
        strengths = tuple((index, strength) for index, (_, strength) in enumerate(loras))
        jobs = [replace(job, loras=strengths) for job in jobs_of(turbo, [request])]
        (picture,) = rank_groups.run_jobs(turbo, jobs, tp=tp, adapters=adapters)
        return picture.latents

    return draw


@pytest.fixture(scope="module")
def files(turbo: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`files(scheme, seed=0)`: a file of the adapter with that seed."""
    folder = tmp_path_factory.mktemp("loras")

    def get(scheme: str = "1 diffusers", seed: int = 0) -> Path:
        change = draw_low_rank(layer_shapes(turbo), seed=seed)
        return write_scheme(folder / f"{scheme.split()[0]}_{seed}.safetensors", turbo, change, scheme)

    return get


@pytest.fixture(scope="module")
def expected(turbo: Path, files: Callable[..., Path]) -> torch.Tensor:
    return of_diffusers(turbo, REQUEST, [(files(), 0.8)])


# A scheme is names, which are read before anything is split: at degrees above one, those whose tensors are cut in
# different ways guard the others.
@pytest.mark.parametrize(
    ("scheme", "tp"),
    [
        pytest.param(scheme, tp, marks=() if tp == 1 or scheme in SPLIT_SCHEMES else pytest.mark.slow)
        for tp in DEGREES
        for scheme in SCHEMES
    ],
)
def test_latents_are_those_of_diffusers(
    files: Callable[..., Path], of_engine: OfEngine, expected: torch.Tensor, scheme: str, tp: int
) -> None:
    latents = of_engine(REQUEST, [(files(scheme), 0.8)], tp=tp)
    assert relative_error(latents, expected) <= TOLERANCE


def test_the_adapter_of_these_tests_changes_the_image_and_every_layer(
    turbo: Path, files: Callable[..., Path], of_engine: OfEngine, expected: torch.Tensor
) -> None:
    assert relative_error(of_engine(REQUEST, []), expected) > 0.1
    for scheme in SCHEMES:
        adapter = open_adapter(files(scheme), ModelConfig.from_folder(turbo))
        assert adapter.modules == len(layer_shapes(turbo)) == 8 * (3 + 4) + 8
        assert adapter.left_out == ""


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_an_adapter_that_was_cast_to_fp8(
    files: Callable[..., Path], of_engine: OfEngine, tmp_path: Path, dtype: torch.dtype
) -> None:
    """It stands for the numbers that it was rounded to, alphas too."""
    rounded = {name: tensor.to(dtype) for name, tensor in load_file(files("7 kohya")).items()}
    plain = {name: tensor.float() for name, tensor in rounded.items()}
    latents = [
        of_engine(REQUEST, [(write(tmp_path / f"{name}.safetensors", tensors), 0.8)], tp=tp)
        for name, tensors, tp in (("plain", plain, 1), ("fp8", rounded, 1), ("again", rounded, 2))
    ]
    assert torch.equal(latents[0], latents[1])
    assert relative_error(latents[2], latents[0]) <= TOLERANCE


def test_two_adapters_with_strengths(turbo: Path, files: Callable[..., Path], of_engine: OfEngine) -> None:
    reference = of_diffusers(turbo, GUIDED, [(files(), 0.7), (files(seed=1), -0.4)])
    for tp in (1, 2):
        latents = of_engine(GUIDED, [(files("3 native"), 0.7), (files("7 kohya", seed=1), -0.4)], tp=tp)
        assert relative_error(latents, reference) <= TOLERANCE, tp


@pytest.mark.parametrize(
    "metadata",
    [
        {"lora_alpha": 10},
        {"lora_alpha": 10, "use_rslora": True},
        {"lora_alpha": 2, "alpha_pattern": {"attn.to_q": 9, "img_in": 1}},
    ],
    ids=["alpha", "rslora", "pattern"],
)
def test_alpha_of_the_header(
    turbo: Path, files: Callable[..., Path], of_engine: OfEngine, tmp_path: Path, metadata: dict
) -> None:
    fields = {"r": 4, "target_modules": sorted(layer_shapes(turbo)), **metadata}
    header = {f"transformer.{key}": value for key, value in fields.items()}
    file = write(tmp_path / "lora.safetensors", load_file(files()), header)
    reference = of_diffusers(turbo, REQUEST, [(file, 0.3)])
    assert relative_error(of_engine(REQUEST, [(file, 0.3)]), reference) <= TOLERANCE


def test_the_header_of_kreas_trainer(
    turbo: Path, files: Callable[..., Path], of_engine: OfEngine, tmp_path: Path
) -> None:
    """Its tensors are those that a converter for diffusers has multiplied with alpha / rank · lora_scale."""
    header = {"rank": "4", "lora_alpha": "2.0", "lora_scale": "0.75"}
    file = write(tmp_path / "krea.safetensors", load_file(files("9 Krea's trainer")), header=header)
    change = {layer: (down, up * 0.375) for layer, (down, up) in draw_low_rank(layer_shapes(turbo)).items()}
    tensors = {f"transformer.{layer}.lora_A.weight": down for layer, (down, _) in change.items()}
    tensors |= {f"transformer.{layer}.lora_B.weight": up for layer, (_, up) in change.items()}
    reference = of_diffusers(turbo, REQUEST, [(write(tmp_path / "converted.safetensors", tensors), 1.0)])
    for tp in DEGREES:
        assert relative_error(of_engine(REQUEST, [(file, 1.0)], tp=tp), reference) <= TOLERANCE, tp


def test_dora_as_peft_writes_and_computes_it(
    turbo: Path, tmp_path: Path, files: Callable[..., Path], of_engine: OfEngine
) -> None:
    tensors = load_file(files())
    (weights,) = (turbo / "transformer").glob("*.safetensors")
    for layer, weight in load_file(weights).items():
        if f"transformer.{layer.removesuffix('.weight')}.lora_A.weight" in tensors:
            magnitude = weight.norm(dim=1) * (1 + 0.2 * torch.rand(weight.shape[0]))
            tensors[f"transformer.{layer.removesuffix('.weight')}.lora_magnitude_vector"] = magnitude
    file = write(tmp_path / "dora.safetensors", tensors)
    reference = of_diffusers(turbo, REQUEST, [(file, 1.0)])
    for tp in DEGREES:
        latents = of_engine(REQUEST, [(file, 1.0)], tp=tp)
        assert relative_error(latents, reference) <= TOLERANCE, tp


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("Lora", {"r": 4, "lora_alpha": 6, "init_lora_weights": False}),
        ("LoKr", {"r": 2, "alpha": 5, "decompose_both": True, "decompose_factor": 8}),
        ("LoKr", {"r": 200, "alpha": 50}),  # both factors are whole, and still divided by r
        ("LoKr", {"r": 2, "alpha": 5, "rank_pattern": {"first": 300}, "alpha_pattern": {"first": 30}}),
        ("LoHa", {"r": 3, "alpha": 5}),
    ],
)
def test_a_folder_that_peft_saved_is_what_it_merges(
    turbo: Path, tmp_path: Path, kind: str, config: dict[str, Any]
) -> None:
    import peft

    rows, columns = layer_shapes(turbo)["img_in"]
    model = nn.ModuleDict({"first": nn.Linear(columns, rows)})
    before = model["first"].weight.detach().clone()
    defaults = {"target_modules": ["first"]} | ({} if kind == "Lora" else {"init_weights": False})
    adapter = peft.get_peft_model(model, getattr(peft, f"{kind}Config")(**defaults | config))
    adapter.save_pretrained(tmp_path)
    expected = adapter.merge_and_unload()["first"].weight.detach() - before
    opened = open_adapter(tmp_path, ModelConfig.from_folder(turbo))
    delta = read_delta(opened.changes["img_in"], (slice(0, rows), slice(0, columns)), torch.device("cpu"))
    assert delta is not None
    assert relative_error(delta.dense(), expected) <= 1e-5


def test_strength_zero_equals_none(files: Callable[..., Path], of_engine: OfEngine) -> None:
    plain, zero = of_engine(REQUEST, []), of_engine(REQUEST, [(files(), 0.0)])
    assert torch.equal(plain, zero)
