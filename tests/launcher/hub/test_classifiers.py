"""Image classifiers named by their Hugging Face repository: out of the cache, downloaded, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import ArgumentError
from launcher.hub.classifiers import find_classifier
from tests.launcher.hub.conftest import NOWHERE, HubSettings
from tests.launcher.hub.fake_hub import FakeHub, fake_hub

NAME = "somebody/finds-nudity"
NEEDED = {"config.json": "{}", "preprocessor_config.json": "[]", "model.safetensors": "weights"}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    for name, text in {**NEEDED, "README.md": "a", "pytorch_model.bin": "b", "model.onnx": "c"}.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def hub(repository: Path, hub_settings: HubSettings, tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub(NAME, repository) as running:
        hub_settings(tmp_path / "cache", running.url)
        yield running


def test_what_is_needed_is_downloaded_once_and_what_it_is_is_said(
    hub: FakeHub, hub_settings: HubSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(find_classifier(NAME))
    assert {file.name: file.read_text() for file in folder.iterdir()} == NEEDED
    assert sorted(hub.fetched) == sorted(NEEDED)
    told = capsys.readouterr().err
    assert f"downloading {NAME} from Hugging Face (3 files, 0.0 MB); using its weights means agreeing" in told
    hub_settings(tmp_path / "cache", NOWHERE, offline=True)
    assert find_classifier(NAME) == str(folder)
    assert capsys.readouterr().err == ""


def test_what_the_cache_has_in_part_is_completed(hub: FakeHub) -> None:
    folder = Path(find_classifier(NAME))
    (folder / "model.safetensors").unlink()
    assert Path(find_classifier(NAME)) == folder
    assert (folder / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("model.safetensors", "it has no model.safetensors but pytorch_model.bin, and pickles are not read"),
        ("config.json", "it is no classifier, which has config.json and preprocessor_config.json"),
        ("preprocessor_config.json", "it is no classifier, which has config.json and preprocessor_config.json"),
    ],
)
def test_what_is_no_classifier_is_not_downloaded(hub: FakeHub, repository: Path, missing: str, told: str) -> None:
    (repository / missing).unlink()
    with pytest.raises(ArgumentError, match=f"filters '{NAME}': there is no such folder .*: {told}") as caught:
        find_classifier(NAME)
    assert caught.value.parameter == "filters"
    assert hub.fetched == []


def test_a_path_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "somebody" / "classifier").mkdir(parents=True)
    for path in ("somebody/classifier", "./no/such", "/no/such/folder"):
        assert find_classifier(path) == path
