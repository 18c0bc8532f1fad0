"""What the command line and the front-end may import: neither waits for torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "diffusers")


def imported_by(statement: str) -> set[str]:
    script = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "cli",
        "async_client",
        "client",
        "clients",
        "frontend",
        "http",
        "http_child",
        "images",
        "info",
        "keys",
        "process",
        "ranks",
        "remote_ranks",
        "requests",
        "spawn",
        "tokenizer",
        "torchrun",
        "worker",
    ],
)
def test_no_module_of_the_launcher_imports_torch(module: str) -> None:
    assert not imported_by(f"import launcher.{module}").intersection(HEAVY)


def test_the_package_and_the_command_line_import_no_more_than_they_need() -> None:
    assert not imported_by("import launcher").intersection((*HEAVY, "zmq", "click", "msgspec"))
    assert not imported_by("import launcher.cli").intersection((*HEAVY, "zmq", "PIL", "tqdm", "tokenizers"))
    assert not imported_by("import launcher.spawn").intersection((*HEAVY, "zmq", "PIL", "tokenizers"))
    assert not imported_by("import launcher.worker").intersection((*HEAVY, "zmq", "PIL", "tokenizers"))
    assert "PIL" not in imported_by("import launcher.frontend")


def test_launch_and_the_clients_are_at_hand() -> None:
    import launcher

    assert {name: getattr(launcher, name).__name__ for name in launcher.__all__} == {
        "AsyncClient": "AsyncClient",
        "Client": "Client",
        "Result": "Result",
        "launch": "launch",
    }
    with pytest.raises(AttributeError, match="no attribute 'lunch'"):
        launcher.lunch  # noqa: B018
