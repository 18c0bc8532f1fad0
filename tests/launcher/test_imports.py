"""What the command line and the front-end may import: neither waits for torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

import engine
import krea2
import launcher
from engine.errors import Krea2Error
from tests.fresh_interpreter import modules_after

HEAVY = {"torch", "transformers", "diffusers"}
WITHOUT_TORCH = (
    "cli.main",
    "cli.generate",
    "cli.info",
    "client.async_client",
    "client.client",
    "client.connection",
    "frontend.delivery.clients",
    "frontend.frontend",
    "frontend.process",
    "http.app",
    "http.server_process",
    "messages.configs",
    "messages.encoding",
    "messages.keys",
    "messages.rank_messages",
    "processes",
    "ranks.rank_group",
    "ranks.remote_ranks",
    "ranks.start",
    "ranks.torchrun",
    "ranks.worker",
    "requests.image_files",
    "requests.check",
    "requests.plan",
    "requests.rank_memory",
    "requests.tokenizer",
    "setup.configure",
    "setup.launch",
)


def test_no_module_of_the_launcher_imports_torch() -> None:
    """Each as the first of the launcher's, so that it needs no other to be imported before it."""
    forget = "[sys.modules.pop(name) for name in list(sys.modules) if name.split('.')[0] == 'launcher']"
    loaded = modules_after(*(f"{forget}; import launcher.{module}" for module in WITHOUT_TORCH))
    for module, modules in zip(WITHOUT_TORCH, loaded, strict=True):
        assert f"launcher.{module}" in modules
        assert not modules & HEAVY, f"launcher.{module}"


def test_the_package_and_the_command_line_import_no_more_than_they_need() -> None:
    """In one interpreter, where what one has imported is there for the next: the next may import it too."""
    may_not_import = {
        "krea2": {"zmq", "click", "msgspec", "PIL", "tqdm"},
        "launcher": {"zmq", "click", "msgspec"},
        "launcher.cli.main": {"zmq", "PIL", "tqdm", "tokenizers"},
        "launcher.setup.launch": {"zmq", "PIL", "tokenizers"},
        "launcher.frontend.process": {"zmq", "PIL", "tokenizers"},
        "launcher.ranks.worker": {"zmq", "PIL", "tokenizers"},
        "launcher.frontend.frontend": {"PIL"},
    }
    loaded = modules_after(*(f"import {module}" for module in may_not_import))
    for (module, forbidden), modules in zip(may_not_import.items(), loaded, strict=True):
        assert module in modules
        assert not modules & (HEAVY | forbidden), module


def test_what_programs_need_is_at_hand() -> None:
    names = [name for name in krea2.__all__ if getattr(krea2, name).__name__ == name]
    assert names == krea2.__all__
    assert {*krea2.__all__} == {*launcher.__all__, "Krea2Error", *(kind.__name__ for kind in errors())}
    assert {*krea2.__all__, "__version__"} == {*dir(krea2)}
    assert krea2.__version__ == engine.__version__
    with pytest.raises(AttributeError, match="module 'krea2' has no attribute 'lunch'"):
        krea2.lunch  # noqa: B018


def test_the_command_can_be_run_as_the_module_too() -> None:
    command = [sys.executable, "-m", "krea2", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.endswith(
        f"{engine.__version__}\n"
    )


def errors() -> list[type[Krea2Error]]:
    """What a user can meet."""
    return Krea2Error.__subclasses__()
