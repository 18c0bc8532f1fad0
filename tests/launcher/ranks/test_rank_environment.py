"""What ranks find in their environment."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from engine.config.engine_config import EngineConfig
from launcher.messages.configs import FrontendConfig
from launcher.ranks import start


def started_with(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, str]]:
    environments: list[Mapping[str, str]] = []
    monkeypatch.setattr(start, "Child", lambda *_, environment, **__: environments.append(environment))
    start.start_ranks(FrontendConfig(engine=EngineConfig(sp=2), run_folder="/nowhere"), [])
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
