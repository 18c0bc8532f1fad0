"""What is said of a Ray of our own that cannot start, or go on."""

from __future__ import annotations

import threading

import pytest

from engine.errors import ArgumentError, ServerError
from launcher.ray.one_machine.messages import ClusterConfig

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


@pytest.mark.parametrize(("visible", "has"), [(None, 4), ("0,2", 2)])
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_more_gpus_than_there_are_are_refused_before_ray_starts(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, has: int, device: str
) -> None:
    from ray._private.accelerators import get_accelerator_manager_for_resource

    from launcher.ray.one_machine import own_ray

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    manager = get_accelerator_manager_for_resource("GPU")
    monkeypatch.setattr(manager, "get_current_node_num_accelerators", staticmethod(lambda: 4))
    monkeypatch.setattr(own_ray.ray, "init", lambda **_: pytest.fail("Ray is started"))
    config = ClusterConfig(args={"device": device}, port=1, cpus=8, gpus=8)
    with pytest.raises(ArgumentError, match=f"the replicas need 8 GPUs, and this machine has {has}$"):
        own_ray.OwnRay(config, lambda *_: None)


@pytest.mark.parametrize(
    ("seconds", "hurries", "running", "cut_off"),
    [(600.0, False, [2, 1, 0], 0), (0.0, False, [2, 1, 0], 2), (0.0, False, [0], 0), (600.0, True, [2, 1, 0], 2)],
)
def test_what_runs_too_long_is_cut_off_and_counted(
    monkeypatch: pytest.MonkeyPatch, seconds: float, hurries: bool, running: list[int], cut_off: int
) -> None:
    from launcher.ray.one_machine import own_ray

    asked: list[bool] = []

    class Ingresses:
        """Answers as Serve's handle of two ingresses."""

        def broadcast(self, method: str, is_late: bool) -> Ingresses:
            assert method == "leave"
            asked.append(is_late)
            return self

        async def results_async(self) -> list[int]:
            return [0, running[len(asked) - 1]]

    monkeypatch.setattr(own_ray.serve, "get_deployment_handle", lambda *_: Ingresses())
    ours = object.__new__(own_ray.OwnRay)
    ours._config = ClusterConfig(args={}, port=1, cpus=8)
    hurry = threading.Event()
    if hurries:
        hurry.set()
    assert ours.drain(seconds, hurry) == cut_off
    assert asked == [hurries or not seconds] * len(running)
