"""What is no classifier, and options that it does not have: refused before it starts, or as it starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import ArgumentError, CheckpointError, Krea2Error
from launcher.filters.built_in.classifier import check_options, make
from tests.fresh_interpreter import modules_after
from tests.launcher.filters.built_in.classifier.folders import Folder, picture


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"device": "gpu"}, r"filter classifier: device= must be cpu, cuda or cuda:N, got 'gpu'"),
        ({"device": "cuda:-1"}, r"device= must be"),
        ({"threads": "0"}, r"threads= must be a whole number from 1 to 256, got '0'"),
        ({"threads": "1.5"}, r"threads= must be"),
        ({"threads": "²"}, r"threads= must be"),
        ({"dtype": "int8"}, r"dtype= must be one of float32, bfloat16, float16, got 'int8'"),
    ],
)
def test_options_that_are_not_allowed_are_named(folder: Folder, options: dict[str, str], told: str) -> None:
    with pytest.raises(ArgumentError, match=told) as caught:
        check_options(str(folder()), options)
    assert caught.value.parameter == "filters"


def test_a_path_is_made_absolute_and_what_is_not_there_is_named(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own.parent)
    assert check_options("own", {}) == str(own)
    for value in ("", "elsewhere", "./no/such", "own/config.json"):
        with pytest.raises(ArgumentError, match=rf"filter classifier: its value must be a folder .*, got '{value}'"):
            check_options(value, {})


def test_without_transformers_the_extra_is_named(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.filters.built_in.classifier.find_spec", lambda _: None)
    with pytest.raises(ArgumentError, match=r"pip install 'krea2-engine\[filters\]'"):
        check_options(str(own), {})


def test_a_gpu_that_is_not_there_is_named(folder: Folder) -> None:
    with pytest.raises(ArgumentError, match=r"device= must be a GPU of this machine .* or cpu, got 'cuda:99'"):
        make(str(folder()), {"device": "cuda:99"})


def _set(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return change


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_without("config.json"), "config.json: the file is missing"),
        (_without("preprocessor_config.json"), "preprocessor_config.json: the file is missing, which says how"),
        (_without("model.safetensors"), "it has no model.safetensors$"),
        (_pickled, "no model.safetensors but pytorch_model.bin, and pickles are not read, which can run any code"),
        (_set(architectures=["ViTModel"]), "architectures: is no image classifier's, .* found ViTModel"),
        (_set(architectures=None), "architectures: is no image classifier's, .* found none"),
        (_set(problem_type="regression"), "problem_type: .* expected that of a classifier"),
        (_set(id2label={"0": "a", "2": "b"}), "id2label: .* expected 1 to 1024 labels"),
        (_set(id2label={"0": "\x1b[31m"}), "id2label: .* expected 1 to 1024 labels"),
        (_set(id2label=["nsfw"]), "id2label: .* expected 1 to 1024 labels"),
    ],
)
def test_a_folder_that_is_no_classifier_is_refused_before_a_process_starts(
    own: Path, change: Callable[[Path], None], told: str
) -> None:
    change(own)
    with pytest.raises(CheckpointError, match=told):
        check_options(str(own), {})


def _other_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite


def _cut(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_other_weights(lambda t: t.pop("classifier.weight")), "classifier.weight: 1 of the model's tensors are not"),
        (_other_weights(lambda t: t.update({"classifier.weight": torch.zeros(5, 32)})), "classifier"),
        (_other_weights(lambda t: t["classifier.bias"].fill_(float("nan"))), "not finite"),
        (_cut, "transformers cannot load it as it is"),
        (_set(id2label={"0": "normal", "1": "nsfw", "2": "odd"}), "classifier"),
        (_set(model_type="of_its_own", auto_map={"AutoConfig": "evil.Config"}), "transformers cannot load it as it is"),
    ],
)
def test_a_classifier_that_would_answer_with_chance_does_not_start(
    own: Path, change: Callable[[Path], None], told: str
) -> None:
    (own / "evil.py").write_text(f"open({str(own / 'ran')!r}, 'w')\nclass Config: pass\n")
    change(own)
    with pytest.raises((Krea2Error, ArithmeticError), match=told):
        make(check_options(str(own), {}), {})
    assert not (own / "ran").exists()


def test_outputs_that_are_not_finite_fail_the_check(folder: Folder) -> None:
    classifier = make(str(folder()), {})
    with torch.no_grad():
        classifier._model.classifier.bias.fill_(float("inf"))
    with pytest.raises(ArithmeticError, match="not finite"):
        classifier.check_images([picture(64, 64)])


def test_options_are_checked_without_what_the_filter_needs() -> None:
    (modules,) = modules_after("import launcher.filters.built_in.classifier")
    assert not modules & {"torch", "transformers", "numpy", "PIL", "huggingface_hub"}
