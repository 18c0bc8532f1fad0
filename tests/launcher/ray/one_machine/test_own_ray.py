"""What is said of a Ray of our own that cannot go on."""

from __future__ import annotations

import pytest

from engine.errors import ServerError

pytest.importorskip("ray")

pytestmark = pytest.mark.cluster  # since only there is Ray sure to be


def test_what_has_ended_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from launcher.ray.one_machine import own_ray

    monkeypatch.setattr(own_ray, "bury_orphans", lambda _: None)
    monkeypatch.setattr(own_ray, "descendants", lambda: [11, 14])
    ours = object.__new__(own_ray.OwnRay)
    ours._processes = {11: "raylet", 12: "monitor.py", 13: "gcs_server"}
    with pytest.raises(ServerError, match=r"of its own processes these are gone: gcs_server, monitor\.py$"):
        ours.check()
