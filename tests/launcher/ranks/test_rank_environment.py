"""What ranks find in their environment."""

from __future__ import annotations

import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping

import pytest

from engine.config.engine_config import EngineConfig
from launcher import processes
from launcher.messages.configs import FrontendConfig
from launcher.ranks import start, torchrun
from tests.launcher.processes import PATIENCE_S, Marked


def started_with(monkeypatch: pytest.MonkeyPatch, **variables: str) -> list[Mapping[str, str]]:
    environments: list[Mapping[str, str]] = []
    monkeypatch.setattr(start, "Child", lambda *_, environment, **__: environments.append(environment))
    start.start_ranks(FrontendConfig(engine=EngineConfig(sp=2), run_folder="/nowhere"), [], variables=variables)
    return environments


def test_nccl_says_what_is_wrong_and_leaves_cuda_errors_to_who_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NCCL_DEBUG", "TORCH_NCCL_RETHROW_CUDA_ERRORS"):
        monkeypatch.delenv(name, raising=False)
    environments = started_with(monkeypatch)
    assert len(environments) == 2
    for environment in environments:
        assert (environment["NCCL_DEBUG"], environment["TORCH_NCCL_RETHROW_CUDA_ERRORS"]) == ("WARN", "0")


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("TORCH_NCCL_RETHROW_CUDA_ERRORS", "1")
    assert not any({"NCCL_DEBUG", "TORCH_NCCL_RETHROW_CUDA_ERRORS"} & each.keys() for each in started_with(monkeypatch))


def test_the_gpus_that_ranks_may_see_are_not_the_users_choice_once_some_have_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    for environment in started_with(monkeypatch, CUDA_VISIBLE_DEVICES="GPU-b"):
        assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-b"


SECRETS = {
    "KREA2_API_KEY": "s3cret",
    "HF_TOKEN": "hf_s3cret",
    "HUGGING_FACE_HUB_TOKEN": "hf_s3cret",
    "NOTIFY_SOCKET": "@nobody",
    "WATCHDOG_PID": "1",
    "WATCHDOG_USEC": "1000000000",
}


def test_children_inherit_neither_secrets_nor_what_systemd_wants_to_hear_of_their_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HOME", "/models")
    environment = processes.child_environment()
    assert not SECRETS.keys() & environment.keys()
    assert environment["HF_HOME"] == "/models"
    # a command that is started without torchrun needs them as we do
    assert SECRETS.items() <= processes.child_environment(secrets=True).items()


def test_a_servers_processes_have_no_key_in_their_environment(marked: Marked) -> None:
    marked.use_hollow_ranks()
    marked.environment |= SECRETS
    server = marked.start_krea2("serve", "--port", "0", "--tp", "2", "--device", "cpu", stderr=subprocess.DEVNULL)
    assert server.stdout is not None
    url = server.stdout.readline().strip().removeprefix("http: ")
    for role, count in (("_rank", 2), ("_http", 1)):
        for process in marked.wait_for(role, count):
            assert "s3cret" not in "".join(process.environ().values())
    with pytest.raises(urllib.error.HTTPError, match="401"):  # and the HTTP process knows it all the same
        urllib.request.urlopen(f"{url}/v1/models", timeout=PATIENCE_S)


def test_the_command_that_a_torchrun_rank_starts_gets_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    environments: list[Mapping[str, str]] = []
    monkeypatch.setenv("KREA2_API_KEY", "s3cret")
    monkeypatch.setattr(subprocess, "Popen", lambda *_, env, **__: environments.append(env))
    torchrun._start_command(torchrun.ExternalRanks(1, 1, 1, "/nowhere", "localhost"))
    assert environments[0]["KREA2_API_KEY"] == "s3cret"
