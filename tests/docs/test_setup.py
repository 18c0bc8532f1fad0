"""What is installed: pyproject.toml, uv.lock and constraints.txt agree, the sizes that are told are theirs, and `make`
sets up what it was asked for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

from tests.docs.documents import ROOT
from tests.launcher.processes import PATIENCE_S


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


PROJECT = tomllib.loads(text_of("pyproject.toml"))["project"]
LOCK = tomllib.loads(text_of("uv.lock"))["package"]
PINS = [Requirement(line) for line in text_of("constraints.txt").splitlines() if not line.startswith("#")]
LINUX = {
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "os_name": "posix",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "python_version": "3.11",
    "python_full_version": "3.11.9",
    "extra": "",
}
_PLATFORMS = [f"manylinux{glibc}_x86_64" for glibc in (*(f"_2_{minor}" for minor in range(34, 4, -1)), 2014, 2010, 1)]
_OF_PYTHON = {"python_version": (3, 11), "platforms": _PLATFORMS}
TAGS = [*cpython_tags(**_OF_PYTHON), *compatible_tags(**_OF_PYTHON)]
# A stand-in for Python and what it installs: says what it is asked, and makes an environment of itself.
PYTHON = """#!/bin/sh
case "$*" in
*cache_tag*) echo {tag} ;;
*version_info*) exit {too_old} ;;
*find_spec*) exit 1 ;;
--version) echo Python {tag} ;;
"-m venv --clear "*)
    echo "$*"; rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; ln -s "$(command -v true)" "$4/bin/krea2" ;;
*) echo "$*" ;;
esac
"""


def test_the_lock_is_of_this_project() -> None:
    (own,) = (package for package in LOCK if package["name"] == PROJECT["name"])
    wanted = [("", line) for line in PROJECT["dependencies"]]
    wanted += [(extra, line) for extra, lines in PROJECT["optional-dependencies"].items() for line in lines]
    locked = own["metadata"]["requires-dist"]
    assert {(extra, *_parts(Requirement(line))) for extra, line in wanted} == {
        (
            "".join(re.findall(r"extra == '([^']+)'", each.get("marker", ""))),
            each["name"],
            frozenset(each.get("extras", ())),
            SpecifierSet(each.get("specifier", "")),
        )
        for each in locked
    }, "run `uv lock`"


def _parts(requirement: Requirement) -> tuple[str, frozenset[str], SpecifierSet]:
    return canonicalize_name(requirement.name), frozenset(requirement.extras), requirement.specifier


def test_constraints_are_the_locks_and_of_all_that_tests_install() -> None:
    locked = {(package["name"], package["version"]) for package in LOCK if "version" in package}
    assert {(canonicalize_name(pin.name), str(pin.specifier).removeprefix("==")) for pin in PINS} <= locked
    pinned = {canonicalize_name(pin.name) for pin in PINS}
    assert {package["name"] for package in installed("test")} - {PROJECT["name"]} <= pinned


def test_what_is_told_of_sizes_is_what_the_lock_has() -> None:
    readme, benchmarks = text_of("README.md"), " ".join(text_of("docs/benchmarks.md").split())
    for extra in ("", "test"):
        packages = installed(extra)
        size = sum(map(wheel_size, packages)) / 1e9
        assert f"{len(packages)} files of {size:.2f} GB" in benchmarks
        assert f"{size:.1f} GB" in text_of("Makefile")
    assert f"{sum(map(wheel_size, installed(''))) / 1e9:.1f} GB" in readme


def installed(extra: str) -> list[dict[str, Any]]:
    """The locked packages that pip takes on Linux for the project with this extra, but for itself."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for package in LOCK:
        by_name.setdefault(package["name"], []).append(package)
    (own,) = by_name[PROJECT["name"]]
    waiting, seen, found = [(own, (extra,))], set(), {}
    while waiting:
        package, extras = waiting.pop()
        wanted = [*package.get("dependencies", ())]
        for each in extras:
            wanted += package.get("optional-dependencies", {}).get(each, ())
        for dependency in wanted:
            if "marker" in dependency and not Marker(dependency["marker"]).evaluate(LINUX):
                continue
            name, version, more = dependency["name"], dependency.get("version"), tuple(dependency.get("extra", ()))
            (target,) = (package for package in by_name[name] if version in (None, package.get("version")))
            if name != own["name"]:
                found[name] = target
            if (name, more) not in seen:
                seen.add((name, more))
                waiting.append((target, more))
    return [*found.values()]


def wheel_size(package: dict[str, Any]) -> int:
    """The bytes of the file that pip takes."""

    def rank(wheel: dict[str, Any]) -> int:
        tags = parse_wheel_filename(wheel["url"].rsplit("/", 1)[-1])[3]
        return min((TAGS.index(tag) for tag in tags if tag in TAGS), default=len(TAGS))

    return int(min(package["wheels"], key=rank)["size"])


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the Makefile and stand-ins for Pythons, which print what they are asked to do."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name, tag, too_old in (("python3", "311", 0), ("python3.12", "312", 0), ("python3.10", "310", 1)):
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(PYTHON.replace("{tag}", tag).replace("{too_old}", str(too_old)))
        file.chmod(0o755)
    return tmp_path


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "TORCH", "MAKEFLAGS")}
    environment["PATH"] = f"{checkout / 'bin'}:{environment['PATH']}"
    return subprocess.run(
        ["make", *arguments], cwd=checkout, env=environment, capture_output=True, text=True, timeout=PATIENCE_S
    )


def test_setting_up_says_what_it_does_and_how_large_that_is(checkout: Path) -> None:
    told = make(checkout, "demo").stdout
    assert "Setting up .venv with Python 311" in told
    assert "-m pip install --quiet --constraint constraints.txt --editable ." in told
    if sys.platform == "linux":
        assert "pip downloads 2.8 GB" in told
        assert "TORCH=cpu" in told
    assert "Setting up" not in make(checkout, "demo").stdout


def test_another_python_makes_the_environment_anew(checkout: Path) -> None:
    assert "-m venv --clear .venv" in make(checkout, "demo").stdout
    assert "venv" not in make(checkout, "demo", "PYTHON=python3").stdout.replace(".venv/bin", "")
    told = make(checkout, "demo", "PYTHON=python3.12").stdout
    assert "-m venv --clear .venv" in told
    assert "--editable ." in told
    assert "312" in (checkout / ".venv" / "bin" / "python").read_text()
    assert "venv" not in make(checkout, "demo").stdout.replace(".venv/bin", "")  # what .venv has, unless asked


@pytest.mark.parametrize("python", ["python3.10", "python3.9.99"])
def test_a_python_that_is_too_old_or_not_there_is_refused(checkout: Path, python: str) -> None:
    make(checkout, "demo")
    run = make(checkout, "demo", f"PYTHON={python}")
    assert run.returncode != 0
    assert f"error: {python} is not Python 3.11 or newer" in run.stderr
    assert (checkout / ".venv" / "installed").exists()  # and what was there stays


def test_a_build_of_torch_is_taken_when_it_is_asked_for(checkout: Path) -> None:
    make(checkout, "demo")
    told = make(checkout, "demo", "TORCH=cpu").stdout
    assert "torch --index-url https://download.pytorch.org/whl/cpu" in told
    assert told.index("torch --index-url") < told.index("--editable .")
    assert "--index-url" not in make(checkout, "demo", "TORCH=cpu").stdout
