"""Small image classifiers, made once for all tests here."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.launcher.filters.built_in.classifier.folders import Folder, make_folder


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Gives torch back the threads that it had."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Makes a classifier once for each of its kinds."""
    made: dict[str, Path] = {}

    def of(family: str = "vit", *labels: str, **config: object) -> Path:
        key = repr((family, labels, config))
        if key not in made:
            made[key] = make_folder(tmp_path_factory.mktemp(family), family, labels or ("normal", "nsfw"), **config)
        return made[key]

    return of


@pytest.fixture
def own(folder: Folder, tmp_path: Path) -> Path:
    """A classifier of a test's own, to change."""
    return shutil.copytree(folder(), tmp_path / "own")
