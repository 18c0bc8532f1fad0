"""How Serve is to run engines and ingresses."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("ray")

from ray.serve.config import AutoscalingConfig

from launcher.ray.app import engine_settings, ingress_settings
from launcher.ray.scaling import QueuedSeconds
from launcher.ray.settled import settle

pytestmark = pytest.mark.cluster  # since only there is Ray sure to be

DEMO: dict[str, Any] = {"model": "demo", "device": "cpu"}


def test_engines_are_told_of_loras_to_load_and_of_none_that_are_in_the_weights() -> None:
    loras = {"loras": ["demo-outlined"]}
    assert engine_settings(settle(DEMO | loras))["user_config"] == loras
    assert engine_settings(settle(DEMO | loras | {"merge_lora": True}))["user_config"] == {"loras": []}


def test_an_ingress_takes_all_requests_that_engines_may_have_and_more_so_that_those_refuse_what_is_too_much() -> None:
    for queue in (4, 5000):
        settled = settle(DEMO | {"max_replicas": 7, "ingress_replicas": 1, "limits": {"max_queue": queue}})
        engines = 7 * engine_settings(settled)["max_ongoing_requests"]
        assert engines > 7 * queue
        assert ingress_settings(settled)["max_ongoing_requests"] > engines


def test_serve_scales_by_the_rule_of_the_arguments_and_hears_of_the_load_every_two_seconds() -> None:
    args = {"min_replicas": 1, "max_replicas": 3, "backlog_target_s": 2.0, "down_delay_s": 20.0}
    scaling = AutoscalingConfig(**engine_settings(settle(DEMO | args))["autoscaling_config"])
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 3)
    assert scaling.policy.policy_kwargs == {"backlog_target_s": 2.0, "down_delay_s": 20.0}
    assert scaling.policy.get_policy() is QueuedSeconds
    assert scaling.metrics_interval_s == 2.0
