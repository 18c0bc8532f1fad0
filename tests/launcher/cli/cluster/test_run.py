"""`krea2 cluster run`: what it refuses before it starts anything."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from launcher.auto_mode import choice
from tests.launcher.conftest import Krea2

pytest.importorskip("ray")

pytestmark = pytest.mark.cluster  # since only there is Ray sure to be
RUN = ("cluster", "run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--key-limits", "x"], "--key-limits would be counted by each replica for itself"),
        (["--http-workers", "2"], "--http-workers are --ingress-replicas of a config here: by default one"),
        (["--lora-dir", "/x"], "--lora-dir: a cluster's LoRAs are declared for all engines, each file with --lora"),
        (["--gpu-memory-utilization", "0.9"], "there is no --gpu-memory-utilization here: write --memory-budget 16GB"),
        (["--no-http"], "--no-http: a cluster is reached over HTTP alone"),
        (["--replicas", "1:3"], "--replicas must be a number, as 2 (MIN:MAX is for krea2 cluster config"),
        (["--replicas", "two"], "--replicas must be a number, as 2"),
        (["--replicas", "0"], "--replicas must be at least 1"),
        (["--replicas", "99999"], "--replicas must be at least 1 and at most 10000"),
        (["--replica", "2"], "No such option '--replica'. Did you mean '--replicas'?"),
        (["--tp", "3"], "--tp must be one of 1, 2, 4, got 3"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0 can be reached from other machines, and nothing asks who they are"),
        (["--port", "70000"], "--port must be between 0 and 65535, got 70000"),
        (["--api-key-file", "none"], "--api-key-file must be a text file that can be read"),
        (["--api-key", "two words"], "--api-key must have no white space: it reaches an ingress among others"),
        (["--lora", "none.safetensors"], "{here}/none.safetensors: No such file or directory"),
        (["/nowhere"], "/nowhere: there is no such folder or file"),
        (["demo", "--model", "demo-raw"], "MODEL demo contradicts --model demo-raw"),
        (["--max-surge-percent", "3"], "there is no option --max-surge-percent of run: it is one of config"),
    ],
)
def test_what_cannot_be_is_refused_by_the_name_that_was_typed(
    krea2: Krea2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.delenv("KREA2_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = krea2(*RUN, *arguments)
    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"error: {message.format(here=tmp_path)}")
    assert stderr.count("\n") == 1


def test_gpus_that_are_not_there_are_refused_as_krea2_serve_does_before_anything_starts(
    krea2: Krea2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "_ask", lambda: "torch finds none")
    refused = (2, "", "error: --device cuda is not available: torch finds none\n")
    assert krea2(*RUN, "--device", "cuda") == refused


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
def test_a_port_that_is_taken_is_told_before_ray_starts(krea2: Krea2) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, _, stderr = krea2(*RUN, "--port", str(port))
    assert code == 1
    assert stderr.startswith(f"error: cannot listen on 127.0.0.1:{port}: Address already in use; choose another --port")


def test_help_is_there_for_each_command_of_the_group(krea2: Krea2) -> None:
    for command in ("run", "config"):
        assert krea2("help", "cluster", command)[1] == krea2("cluster", command, "--help")[1]
    assert "Commands:" in krea2("help", "cluster")[1]
    assert krea2("cluster", "rnu")[2] == "error: there is no command 'rnu': did you mean run?\n"
    assert krea2("cluster", "start")[2] == "error: there is no command 'start': there are config, run\n"
