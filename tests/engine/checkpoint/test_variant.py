"""Raw or Turbo, steps and guidance: who says it, and who is believed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.convert.convert import convert
from engine.checkpoint.part_paths import repository_of
from engine.checkpoint.variant import variant_by_base, variant_by_header, variant_by_name
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import CheckpointError
from tests.damage import copy_checkpoint, rewrite_json
from tests.engine.checkpoint.layouts.layouts import save
from tests.engine.checkpoint.model_configs import open_config


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("krea2_turbo_fp8_scaled", "turbo"),
        ("Krea-2-Turbo-Q4_K_M", "turbo"),
        ("KREA2Turbo", "turbo"),
        ("krea2_raw_bf16", "raw"),
        ("raw", "raw"),
        ("krea-2-base", "raw"),
        ("turbo_from_raw", "turbo"),
        ("drawing", None),
        ("database", None),
        ("krea2", None),
        ("krea2_raw_lightning", "turbo"),
        ("krea2_raw-4steps", "turbo"),
        ("krea2-8-step", "turbo"),
        ("krea2_raw_dmd2", "turbo"),
        ("krea2-raw-distilled", "turbo"),
        ("krea2_turbo_de-distilled", "raw"),
        ("krea2-deturbo", "raw"),
        ("mode_turbo", "turbo"),
        ("krea2_raw_2000steps", "raw"),
        ("krea2-epoch-4-step-800", None),
        ("krea2-step00000400", None),
    ],
)
def test_a_files_name_tells_the_variant_by_whole_words(tmp_path: Path, name: str, variant: str | None) -> None:
    file = tmp_path / f"{name}.safetensors"
    file.touch()
    assert variant_by_name(file) == variant


@pytest.fixture
def unsaid(turbo: Path, tmp_path: Path) -> Path:
    """A repository that does not say what it is."""
    folder = copy_checkpoint(turbo, tmp_path / "unsaid")
    rewrite_json(folder / "model_index.json", lambda values: values.pop("is_distilled"))
    return folder


def variant_of(config: ModelConfig) -> tuple[str, bool]:
    return "turbo" if config.is_distilled else "raw", config.variant_is_assumed


def test_a_repository_further_up_says_nothing_of_a_file(turbo: Path, single: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "models" / "krea"
    folder.mkdir(parents=True)
    shutil.copy(turbo / "model_index.json", folder.parent)
    file = Path(shutil.copy(single["transformer"], folder))
    assert repository_of(file) is None
    assert repository_of(turbo) == repository_of(turbo / "transformer") == turbo
    assert repository_of(turbo / "transformer" / "diffusion_pytorch_model.safetensors") == turbo


def test_the_option_decides_before_everything(raw: Path) -> None:
    assert variant_of(open_config(model=str(raw), variant="turbo")) == ("turbo", False)


def test_steps_and_guidance_may_be_stated_and_hold_for_the_kind_that_they_are_stated_of(
    raw: Path, turbo: Path, tmp_path: Path
) -> None:
    own = copy_checkpoint(raw, tmp_path / "own")
    rewrite_json(own / "model_index.json", lambda values: values.update(default_steps=40, default_guidance=2))

    def defaults(**options: Any) -> tuple[int, float]:
        config = open_config(**options)
        return config.default_steps, config.default_guidance

    assert defaults(model=str(own)) == defaults(model=str(own), variant="raw") == (40, 2.0)
    assert defaults(model=str(own), variant="turbo") == (8, 0.0)
    assert defaults(model=str(own), transformer=str(turbo)) == (8, 0.0)
    assert defaults(model=str(raw)) == defaults(model=str(turbo), variant="raw") == (52, 3.5)
    rewrite_json(own / "model_index.json", lambda values: values.pop("default_steps"))
    assert defaults(model=str(own)) == (52, 2.0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("default_steps", 0), ("default_steps", 201), ("default_steps", 8.0), ("default_guidance", -0.5),
        ("default_guidance", 20.5), ("default_guidance", "3"), ("default_guidance", float("nan")),
        ("prompt_words", "fox"), ("prompt_note", 3), ("good_sides", [4096, 8192]),
    ],
)  # fmt: skip
def test_a_default_or_a_domain_that_cannot_be_is_named(raw: Path, tmp_path: Path, key: str, value: object) -> None:
    folder = copy_checkpoint(raw, tmp_path / "copy")
    fine = {"prompt_words": ["a", "fox"], "prompt_note": "It draws foxes."}
    rewrite_json(folder / "model_index.json", lambda values: values.update({**fine, key: value}))
    with pytest.raises(CheckpointError, match=rf"model_index\.json: {key}: .*, expected .*, found "):
        open_config(model=str(folder))


def test_then_the_repository_of_the_transformer(raw: Path, turbo: Path) -> None:
    assert variant_of(open_config(model=str(raw))) == ("raw", False)
    assert variant_of(open_config(model=str(turbo), transformer=str(raw))) == ("raw", False)
    assert variant_of(open_config(model=str(turbo), transformer=str(raw / "transformer"))) == ("raw", False)


def test_then_the_transformers_own_config(unsaid: Path) -> None:
    rewrite_json(unsaid / "transformer/config.json", lambda values: values.update(is_distilled=False))
    assert variant_of(open_config(model=str(unsaid))) == ("raw", False)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"ss_krea2_dit_variant": "raw", "ss_sd_model_name": "turbo.safetensors"}, ("raw", "ss_krea2_dit_variant")),
        ({"ss_krea2_dit_variant": "turbo", "modelspec.title": "raw"}, ("turbo", "ss_krea2_dit_variant")),
        ({"ss_krea2_dit_variant": "None", "modelspec.title": "My Raw one"}, ("raw", "modelspec.title")),
        ({"model_type": "krea2", "variant": "turbo"}, ("turbo", "variant")),
        ({"krea2_is_distilled": "False"}, ("raw", "krea2_is_distilled")),
        ({"modelspec.architecture": "krea2-turbo", "modelspec.title": "Krea 2"}, ("turbo", "modelspec.architecture")),
        ({"general.architecture": "krea2", "general.name": "Krea 2 Raw"}, ("raw", "general.name")),
        ({"modelspec.title": "Sketch lightning", "ss_sd_model_name": "raw.safetensors"}, ("turbo", "modelspec.title")),
        # as OneTrainer, ai-toolkit and musubi-tuner write it of either
        ({"modelspec.architecture": "Krea-2", "modelspec.title": "Krea 2", "modelspec.sai_model_spec": "1.0.0"}, None),
        ({"software": '{"name": "ai-toolkit"}', "training_info": '{"step": 4}', "ss_output_name": "fox"}, None),
        ({"ss_base_model_version": "krea2"}, None),
        ({"format": "pt"}, None),
    ],
)  # fmt: skip
def test_a_header_tells_the_variant(metadata: dict[str, str], said: tuple[str, str] | None) -> None:
    assert variant_by_header(metadata) == said


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"general.base_model.0.name": "https://huggingface.co/krea/Krea-2-Raw"}, ("raw", "general.base_model.0.name")),
        ({"ss_sd_model_name": "turbo/krea2_raw_bf16.safetensors"}, ("raw", "ss_sd_model_name")),
        ({"ot_config": '{"base_model_name": "krea/Krea-2-Turbo"}'}, ("turbo", "ot_config.base_model_name")),
        ({"ot_config": '{"base_model_name": ["raw"]}'}, None),
        ({"ot_config": "{" * 100_000}, None),
        ({"ss_sd_model_name": "krea2.safetensors"}, None),
    ],
)
def test_a_header_tells_what_a_file_was_made_from(metadata: dict[str, str], said: tuple[str, str] | None) -> None:
    assert variant_by_header(metadata) is None
    assert variant_by_base(metadata, {}) == said


def test_what_a_file_was_made_from_is_believed_after_its_name(unsaid: Path, single: dict[str, str]) -> None:
    """Distilled from Raw to a few steps, it is Turbo."""
    metadata = {"ss_sd_model_name": "krea2_raw.safetensors"}
    file = save(load_file(single["transformer"]), unsaid / "sketch.safetensors", metadata)
    assert variant_of(open_config(model=str(file))) == ("raw", False)
    config = open_config(model=str(file.rename(unsaid / "sketch-4steps.safetensors")))
    assert (variant_of(config), config.variant_note) == (("turbo", False), None)


def test_then_the_header_and_what_says_otherwise_is_told(unsaid: Path, single: dict[str, str], tmp_path: Path) -> None:
    tensors = load_file(single["transformer"])
    file = save(tensors, unsaid / "krea2_turbo.safetensors", {"ss_krea2_dit_variant": "raw"})
    config = open_config(model=str(file))
    assert variant_of(config) == ("raw", False)
    assert config.variant_note == (
        f"{file}: ss_krea2_dit_variant in its header says that it is Raw, and its name that it is Turbo; Raw is "
        "taken, unless variant is given"
    )
    config = open_config(model=str(file), variant="turbo")
    assert (variant_of(config), config.variant_note) == (("turbo", False), None)
    config = open_config(model=str(file.rename(unsaid / "krea2.safetensors")))
    assert (variant_of(config), config.variant_note) == (("raw", False), None)


def test_a_repositorys_files_say_it_in_their_headers_too(unsaid: Path) -> None:
    file = next((unsaid / "transformer").glob("*.safetensors"))
    tensors = load_file(file)
    file.unlink()
    save(tensors, file, {"general.name": "Krea 2 Raw"})
    assert variant_of(open_config(model=str(unsaid))) == ("raw", False)


def test_a_repository_that_says_it_goes_before_the_header(raw: Path, single: dict[str, str], tmp_path: Path) -> None:
    folder = copy_checkpoint(raw, tmp_path / "copy")
    file = save(load_file(single["transformer"]), folder / "krea2.safetensors", {"modelspec.title": "Turbo"})
    config = open_config(model=str(file))
    assert variant_of(config) == ("raw", False)
    assert "model_index.json says that it is Raw, and modelspec.title in its header that" in (config.variant_note or "")


@pytest.mark.parametrize(("name", "variant"), [("krea2_raw", "raw"), ("krea2_turbo", "turbo"), ("krea2", None)])
def test_then_a_files_name(unsaid: Path, single: dict[str, str], name: str, variant: str | None) -> None:
    file = shutil.copy(single["transformer"], unsaid / f"{name}.safetensors")
    assert variant_of(open_config(model=str(file))) == (variant or "turbo", variant is None)


@pytest.mark.parametrize(
    ("path", "variant"),
    [
        ("krea2-raw-foxes/transformer", "raw"),
        ("krea2-raw-foxes", "raw"),
        ("turbo/transformer/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "turbo"),
        ("raw/model.safetensors", "raw"),
        ("raw/foxes.safetensors", None),
        ("raw/foxes", None),
        ("raw/foxes/transformer", None),
    ],
)
def test_a_folder_tells_it_by_its_name_where_that_of_what_is_in_it_is_everyones(
    tmp_path: Path, path: str, variant: str | None
) -> None:
    file = tmp_path / path
    file.mkdir(parents=True)
    if file.suffix:
        file.rmdir()
        file.touch()
    assert variant_by_name(file) == variant


def test_at_last_what_diffusers_loaded_it_from_before_it_was_saved(unsaid: Path) -> None:
    rewrite_json(unsaid / "transformer/config.json", lambda values: values.update(_name_or_path="krea/Krea-2-Raw"))
    assert variant_of(open_config(model=str(unsaid))) == ("raw", False)
    rewrite_json(unsaid / "transformer/config.json", lambda values: values.update(_name_or_path=["raw"]))
    assert variant_of(open_config(model=str(unsaid))) == ("turbo", True)


@pytest.mark.parametrize("layout", ["native", "gguf"])
def test_what_was_converted_says_what_it_is(raw: Path, turbo: Path, tmp_path: Path, layout: str) -> None:
    checkpoint = CheckpointFiles.open(EngineConfig(model=str(raw)))
    file = tmp_path / "transformer.any"
    convert(checkpoint, file, layout=layout, weights="bf16" if layout == "gguf" else "keep")
    checkpoint.close()
    others = {part: str(turbo / part) for part in ("text_encoder", "vae", "tokenizer")}
    config = open_config(model=str(turbo), transformer=str(file), **others)
    assert variant_of(config) == ("raw", False)
    assert config.variant_said_by == "is_distilled in its header"


def test_a_file_from_elsewhere_is_what_its_name_says_or_else_what_the_folder_is(
    raw: Path, single: dict[str, str], tmp_path: Path
) -> None:
    named = shutil.copy(single["transformer"], tmp_path / "turbo.safetensors")
    assert variant_of(open_config(model=str(raw), transformer=str(named))) == ("turbo", False)
    assert variant_of(open_config(model=str(raw), transformer=single["transformer"])) == ("raw", True)


def test_a_checkpoint_that_says_nothing_is_taken_for_turbo(unsaid: Path) -> None:
    assert variant_of(open_config(model=str(unsaid))) == ("turbo", True)
