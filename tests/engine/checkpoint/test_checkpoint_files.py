"""A model put together from one folder, from single files, or from both."""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.config.demo_checkpoints import DEMO_CHECKPOINT, DEMO_CHECKPOINTS
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError, CheckpointError
from engine.parallel.mesh import Mesh
from engine.rank.rank import Rank
from tests.damage import bounded_memory, copy_checkpoint, rewrite_json, rewrite_tensors
from tests.engine.checkpoint.layouts.layouts import (
    load_transformer,
    native_transformer,
    save,
)
from tests.engine.checkpoint.model_configs import open_config


def load(**options: str) -> Rank:
    return Rank(EngineConfig(device="cpu", **options), Mesh(), torch.device("cpu"))  # type: ignore[arg-type]


def states(rank: Rank) -> dict[str, torch.Tensor]:
    model = rank.model
    assert model.vae is not None
    assert model.vae_encoder is not None
    return {
        f"{number}.{name}": tensor
        for number, module in enumerate((model.transformer, model.text_encoder, model.vae, model.vae_encoder))
        for name, tensor in module.state_dict().items()
    }


# ---- mixing


@pytest.mark.parametrize(
    "parts", [("transformer",), ("text_encoder",), ("vae",), ("transformer", "text_encoder", "vae")]
)
def test_components_from_elsewhere_are_the_same_model(
    turbo: Path, single: dict[str, str], parts: tuple[str, ...]
) -> None:
    expected = states(load(model=str(turbo)))
    rank = load(model=str(turbo), **{part: single[part] for part in parts})
    found = states(rank)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    # what no shape tells is the folder's: this checkpoint's own rope_theta and latent statistics
    assert rank.model.config == ModelConfig.from_folder(turbo)


def test_components_of_two_repositories_mix(turbo: Path, checkpoint: Callable[..., Path]) -> None:
    other = checkpoint(seed=1, vae_res_blocks=2)
    checkpoint_files = CheckpointFiles.open(EngineConfig(model=str(turbo), vae=str(other)))
    assert checkpoint_files.components["vae"].file.path.is_relative_to(other)
    assert checkpoint_files.config.vae == ModelConfig.from_folder(other).vae
    assert checkpoint_files.config.text_encoder == ModelConfig.from_folder(turbo).text_encoder


def test_a_config_beside_a_file_wins(turbo: Path, single: dict[str, str], tmp_path: Path) -> None:
    shutil.copy(single["text_encoder"], tmp_path / "model.safetensors")
    shutil.copy(turbo / "text_encoder/config.json", tmp_path)
    rewrite_json(
        tmp_path / "config.json", lambda values: values["text_config"]["rope_parameters"].update(rope_theta=7.0)
    )
    config = open_config(model=str(turbo), text_encoder=str(tmp_path / "model.safetensors"))
    assert config.text_encoder.rope_theta == 7.0


def test_a_config_of_something_else_beside_a_file_is_left_alone(
    turbo: Path, single: dict[str, str], tmp_path: Path
) -> None:
    shutil.copy(single["vae"], tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    assert open_config(model=str(turbo), vae=str(tmp_path / "model.safetensors")) == ModelConfig.from_folder(turbo)


def test_shapes_are_checked_against_a_config_that_wins(turbo: Path, single: dict[str, str], tmp_path: Path) -> None:
    shutil.copy(single["transformer"], tmp_path / "model.safetensors")
    shutil.copy(turbo / "transformer/config.json", tmp_path)
    rewrite_json(tmp_path / "config.json", lambda values: values.update(num_layers=4))
    with pytest.raises(CheckpointError, match=r"model\.diffusion_model\.blocks\.3\.mod\.lin: tensor is missing"):
        open_config(model=str(turbo), transformer=str(tmp_path / "model.safetensors"))


def test_parts_that_do_not_fit_together_are_refused(single: dict[str, str]) -> None:
    with pytest.raises(CheckpointError, match=r"text_hidden_dim: .* expected the text encoder's 96, found 64"):
        open_config(model="demo", transformer=single["transformer"])


# ---- without a folder


def test_four_parts_need_no_model(turbo: Path, tmp_path: Path) -> None:
    """Inside of a repository, whose index is found; the small checkpoint's taps are in there alone."""
    parts = {part: str(turbo / part) for part in ("transformer", "text_encoder", "vae", "tokenizer")}
    assert open_config(**parts) == ModelConfig.from_folder(turbo)


def test_what_is_not_in_any_file_is_taken_for_the_published_model(single: dict[str, str]) -> None:
    with pytest.raises(CheckpointError, match=r"takes what 3 layers of the text encoder say, .* \(demo for a demo's\)"):
        open_config(**single)


@pytest.mark.parametrize("given", [("transformer",), ("text_encoder", "vae"), ("transformer", "text_encoder", "vae")])
def test_missing_parts_are_named(single: dict[str, str], given: tuple[str, ...]) -> None:
    missing = [part for part in ("transformer", "text_encoder", "vae", "tokenizer") if part not in given]
    with pytest.raises(ArgumentError) as error:
        open_config(**{part: single[part] for part in given})
    assert error.value.message.startswith(f"missing: {', '.join(missing)}; give each as ")
    assert error.value.message.endswith(f" beside {' '.join(f'{part} {single[part]}' for part in given)}")
    assert error.value.parameter == missing[0]


def test_a_single_file_as_model_takes_the_rest_from_its_folder(turbo: Path, tmp_path: Path) -> None:
    folder = copy_checkpoint(turbo, tmp_path / "Krea-2")
    file = save(native_transformer(load_transformer(turbo)), folder / "turbo.safetensors")
    checkpoint = CheckpointFiles.open(EngineConfig(model=str(file)))
    assert checkpoint.components["transformer"].file.path == file
    assert checkpoint.components["vae"].file.path.parent == folder / "vae"
    assert checkpoint.tokenizer == folder / "tokenizer"
    assert checkpoint.config == ModelConfig.from_folder(turbo)


def test_a_repository_may_hold_the_single_file_alone(turbo: Path, tmp_path: Path) -> None:
    folder = copy_checkpoint(turbo, tmp_path / "Krea-2")
    file = save(native_transformer(load_transformer(turbo)), folder / "turbo.safetensors")
    shutil.rmtree(folder / "transformer")
    assert CheckpointFiles.open(EngineConfig(model=str(folder))).components["transformer"].file.path == file


def test_a_single_file_as_model_without_a_folder_needs_the_other_parts(single: dict[str, str]) -> None:
    with pytest.raises(ArgumentError, match="missing: text_encoder, vae, tokenizer; "):
        open_config(model=single["transformer"])


def test_two_transformers_are_refused(single: dict[str, str]) -> None:
    with pytest.raises(ArgumentError, match="model must be a folder, or a file of other parts, where "):
        open_config(model=single["transformer"], transformer=single["transformer"])


def test_a_path_to_nowhere_is_named(turbo: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: there is no such folder or file"):
        open_config(model=str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors: the file is missing"):
        open_config(model=str(turbo), vae=str(tmp_path / "nowhere.safetensors"))


# ---- errors name what the file holds


def test_errors_name_tensors_as_the_file_does(turbo: Path, single: dict[str, str], tmp_path: Path) -> None:
    file = Path(shutil.copy(single["transformer"], tmp_path / "model.safetensors"))
    name = "model.diffusion_model.blocks.1.mlp.up.weight"
    rewrite_tensors(file, lambda tensors: tensors.update({name: tensors[name].T}))
    with pytest.raises(CheckpointError) as error:
        open_config(model=str(turbo), transformer=str(file))
    assert error.value.message == (f"{file}: {name}: tensor has the wrong shape, expected (256, 128), found (128, 256)")
    rewrite_tensors(file, lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError) as error:
        open_config(model=str(turbo), transformer=str(file))
    assert error.value.message == f"{file}: {name}: tensor is missing, expected (256, 128)"


def test_an_unknown_tensor_is_named(turbo: Path, single: dict[str, str], tmp_path: Path) -> None:
    file = Path(shutil.copy(single["transformer"], tmp_path / "model.safetensors"))
    name = "model.diffusion_model.blocks.1.attn.wz.weight"
    rewrite_tensors(file, lambda tensors: tensors.update({name: torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=rf"{name}: tensor does not belong to this model"):
        open_config(model=str(turbo), transformer=str(file))


def test_the_demo_is_what_no_option_stands_for() -> None:
    assert open_config() == open_config(model="demo") == ModelConfig.from_folder(DEMO_CHECKPOINT)
    with pytest.raises(ArgumentError, match="vae must be a path, got ''"):
        EngineConfig(vae="")


def test_the_demos_have_names(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEMO_CHECKPOINTS, "demo-raw", raw)
    monkeypatch.chdir(tmp_path)
    for name in DEMO_CHECKPOINTS:
        Path(name).mkdir()  # which they win over
    assert EngineConfig(model="demo-turbo").demo == EngineConfig().demo == DEMO_CHECKPOINT
    assert open_config(model="demo-turbo") == open_config()
    assert open_config(model="demo-raw") == ModelConfig.from_folder(raw)
    assert EngineConfig(model="./demo").demo is EngineConfig(transformer="demo").demo is None
    with pytest.raises(CheckpointError, match=r"^demo: is no checkpoint, for there is no model_index\.json in it"):
        open_config(model="./demo")
    with pytest.raises(ArgumentError, match="the path of a checkpoint, or one of demo, demo-turbo, demo-raw, got ''"):
        EngineConfig(model="")


def test_a_folder_that_is_no_checkpoint_says_what_is_in_it(turbo: Path, tmp_path: Path) -> None:
    (tmp_path / "org/name").mkdir(parents=True)

    def refusal(folder: str) -> str:
        with pytest.raises(CheckpointError) as error:
            open_config(model=folder)
        return error.value.message.partition("; ")[2]

    assert refusal(str(tmp_path)).startswith("a model is a folder that has one, a transformer's file, ")
    for name in ("vae/wan.safetensors", "text_encoders/qwen.safetensors"):  # ComfyUI's folder of models
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert refusal(str(tmp_path)).endswith(f"{tmp_path}/text_encoders/qwen.safetensors, {tmp_path}/vae/wan.safetensors")
    (tmp_path / "b.safetensors").touch()
    (tmp_path / "a.gguf").touch()
    files = f"{tmp_path}/a.gguf, {tmp_path}/b.safetensors"
    assert refusal(str(tmp_path)) == f"give one of the files in it as model, or each as the part that it is: {files}"
    for number in range(8):
        copy_checkpoint(turbo, tmp_path / f"org/name/{number}")
    listed = ", ".join(f"{tmp_path}/org/name/{number}" for number in range(6))
    assert refusal(str(tmp_path)) == f"give one of the checkpoints in it: {listed} and 2 more"
    with contextlib.chdir(tmp_path):
        Path("org/name@v2").mkdir()
        for folder in ("org/name", "org/name@v2"):
            assert refusal(folder).endswith("; a folder here goes before a Hugging Face repository of the same name")


def test_a_missing_image_sequence_length_is_the_pipelines_not_the_schedulers(turbo: Path, tmp_path: Path) -> None:
    """diffusers' scheduler class has another default than Krea's pipeline."""
    folder = copy_checkpoint(turbo, tmp_path / "copy")
    rewrite_json(folder / "scheduler/scheduler_config.json", lambda values: values.pop("max_image_seq_len"))
    assert json.loads((folder / "scheduler/scheduler_config.json").read_text())["base_image_seq_len"] == 256
    assert open_config(model=str(folder)).schedule.max_image_seq_len == 6400


def test_a_path_that_is_too_long_for_a_path_is_an_error_like_any_other(turbo: Path) -> None:
    for options in ({"model": "x" * 5000}, {"model": str(turbo), "vae": "x" * 5000}):
        with pytest.raises(CheckpointError):
            open_config(**options)


# ---- damage, where no config.json says what there should be


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
def test_damaged_single_files_are_refused_or_fit(
    turbo: Path, single: dict[str, str], tmp_path: Path, part: str
) -> None:
    original = load_file(single[part])
    for seed in range(60):
        rng = random.Random(seed)
        tensors = dict(original)
        names = sorted(tensors)
        for _ in range(rng.choice((1, 1, 2))):
            name, other = rng.choice(names), rng.choice(names)
            kind = rng.randrange(4)
            if kind == 0:
                tensors.pop(name, None)
            elif kind == 1:
                tensors[name] = torch.zeros(rng.choice(((), (0,), (1,), (7, 3), (2, 2, 2), (1, 1, 1, 1, 1))))
            elif kind == 2:
                tensors[name] = original[other]
            else:
                tensors[re.sub(r"\d+", rng.choice(("0", "1", "7", "1000000000")), name)] = original[name]
        file = save(tensors, tmp_path / f"{part}-{seed}.safetensors")
        with suppress(CheckpointError), bounded_memory():
            open_config(model=str(turbo), **{part: str(file)})
        file.unlink()
