"""The settings of Hugging Face's library, for what is asked of a hub in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from launcher.hub import asking
from tests.launcher.processes import PATIENCE_S

NOWHERE = "http://127.0.0.1:9"  # where nothing listens
HubSettings = Callable[..., None]


@pytest.fixture
def hub_settings(monkeypatch: pytest.MonkeyPatch) -> HubSettings:
    """Sets which cache and which hub the library takes, which it reads from the environment when it is imported."""

    monkeypatch.setattr(asking, "ANSWER_S", PATIENCE_S)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", PATIENCE_S)  # after which it asks for the same again

    def settle(cache: Path, endpoint: str = NOWHERE, *, offline: bool = False) -> None:
        settings = {
            "HF_HUB_CACHE": str(cache / "hub"),
            "HF_TOKEN_PATH": str(cache / "token"),
            "ENDPOINT": endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_DISABLE_PROGRESS_BARS": True,
            "HF_HUB_OFFLINE": offline,
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)

    return settle
