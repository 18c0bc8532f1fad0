"""The application that Ray Serve runs: two deployments, of engines and of ingresses, made of checked arguments."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from launcher.logs import configure_logs, log_event
from launcher.ray.args import ENGINE, INGRESS
from launcher.ray.engine_replica import EngineReplica
from launcher.ray.ingress import make_ingress
from launcher.ray.link import RayLink
from launcher.ray.replaying.retelling import Usual
from launcher.ray.settled import Settled, settle
from launcher.ray.web.asking import answers_within
from launcher.ray.web.ingresses import ANSWER_S, Ingresses
from launcher.ray.wire import decode_named, encode_named
from launcher.threads import in_own_thread

_BEYOND_QUEUE = 64  # requests that an engine may have beside those that wait, so that it refuses, and not Serve
_INGRESS_REQUESTS = 1000  # at once, besides those that engines may have: it is for engines to refuse some
_HEALTH_PERIOD_S, _HEALTH_TIMEOUT_S = 5.0, 30.0
_STATS_PERIOD_S, _STATS_TIMEOUT_S = 2.0, 10.0
_LOOK_BACK_S = 10.0  # in which an engine counts how often it was busy
_WAIT_LOOP_S = 0.5  # between looks whether a replica that is to stop has done all
_TRIES = 3  # to start a replica of a deployment that never started
_CPUS_A_RANK = 0.5  # where there are no GPUs: a laptop's few cores are to be enough for two engines and the rest
_AFTER_ENGINES_S = 30.0  # for an ingress to send on what the last engine has drawn


class Engine(EngineReplica):
    """`EngineReplica` as Serve starts it."""

    async def __init__(self, args: Mapping[str, Any]) -> None:  # type: ignore[misc]
        super().__init__(args, name=serve.get_replica_context().replica_tag)
        await self.start()

    async def __del__(self) -> None:
        await self.stop()


@serve.ingress()
class Ingress:
    """The HTTP application as Serve starts it, given the arguments of the cluster and the handle of its engines."""

    def __init__(self, args: Mapping[str, Any], engines: Any) -> None:
        configure_logs("json", process="ingress")
        self._args, self._engines = args, engines
        context = serve.get_replica_context()
        self._name, self._app_name = context.replica_tag, context.app_name
        self._all: Any = None  # the handle of all ingresses, itself among them, made when it is needed
        self._beside: list[asyncio.Task[None]] = []

    async def __serve_build_asgi_app__(self) -> Any:
        settled = await in_own_thread(partial(settle, self._args))
        self._link = RayLink(self._engines, Usual.of(settled.model))
        is_alone = settled.args.ingress_replicas == 1
        self._ingresses = Ingresses(self._name, None if is_alone else self._ask_all, self._link.counts.render)
        app, beside = await in_own_thread(partial(make_ingress, settled, self._link, self._ingresses))
        self._beside, self._app = [asyncio.create_task(work) for work in beside], app
        return app

    async def leave(self, cut_off: bool) -> int:
        """Take no more requests, for good, and fail those that run if they are to be cut off. Returns how many run."""
        if cut_off:
            self._link.end()
        return self._app.leave()

    async def answer(self, question: bytes) -> bytes:
        """Answer another ingress."""
        return encode_named(self._name, self._ingresses.answer(question))

    async def _ask_all(self, question: bytes) -> dict[str, bytes]:
        if self._all is None:
            self._all = serve.get_deployment_handle(INGRESS, self._app_name)
        with suppress(RayError, RayServeException, TimeoutError):
            return dict(map(decode_named, await answers_within(self._all.broadcast("answer", question), ANSWER_S)))
        return {}

    async def __del__(self) -> None:
        for task in self._beside:
            task.cancel()
        if self._beside:
            await asyncio.wait(self._beside)


def make_application(args: Mapping[str, Any]) -> Any:
    """Make the application of `args:`. Raises `ArgumentError`, `CheckpointError` or `LoraError`, and starts nothing."""
    settled = settle(args)
    for warning in settled.warnings:
        log_event("warning", level="warning", message=warning)
    read = settled.args
    given = read.given()
    engine = serve.deployment(Engine, name=ENGINE, **engine_settings(settled))
    ingress = serve.deployment(Ingress, name=INGRESS, **ingress_settings(settled))
    return ingress.bind(given, engine.bind(given))


def engine_settings(settled: Settled) -> dict[str, Any]:
    """Say how Serve is to run the engines."""
    read, engine = settled.args, settled.frontend.engine
    cluster = read.cluster
    gpus = engine.ranks if uses_gpus(engine.device) else 0
    cpus = cluster.engine_cpus
    if cpus is None:
        cpus = float(gpus) if gpus else _CPUS_A_RANK * engine.ranks
    loras = () if read.engine.get("merge_lora") else read.engine.get("loras", ())  # those are in the weights
    settings: dict[str, Any] = {
        "ray_actor_options": {"num_gpus": gpus, "num_cpus": cpus},
        "user_config": {"loras": list(loras)},
        "max_ongoing_requests": _most_requests(settled),
        "graceful_shutdown_timeout_s": cluster.drain_s,
        "graceful_shutdown_wait_loop_s": _WAIT_LOOP_S,
        "health_check_period_s": _HEALTH_PERIOD_S,
        "health_check_timeout_s": _HEALTH_TIMEOUT_S,
        "max_constructor_retry_count": _TRIES,
        "max_surge_percent": cluster.max_surge_percent,
        "request_router_config": {
            "request_router_class": "launcher.ray.router_class:Router",
            "request_routing_stats_period_s": _STATS_PERIOD_S,
            "request_routing_stats_timeout_s": _STATS_TIMEOUT_S,
        },
    }
    if read.max_replicas == cluster.min_replicas:
        return settings | {"num_replicas": cluster.min_replicas}
    policy = {
        "policy_function": "launcher.ray.scaling:QueuedSeconds",
        "policy_kwargs": {"backlog_target_s": cluster.backlog_target_s, "down_delay_s": cluster.down_delay_s},
    }
    scaling = {
        "min_replicas": cluster.min_replicas,
        "max_replicas": read.max_replicas,
        "upscale_delay_s": 0.0,  # the policy has delays of its own
        "downscale_delay_s": 0.0,
        "metrics_interval_s": _STATS_PERIOD_S,  # deprecated for a variable of the environment that nothing reads yet
        "look_back_period_s": _LOOK_BACK_S,
        "policy": policy,
    }
    return settings | {"autoscaling_config": scaling}


def _most_requests(settled: Settled) -> int:
    """Requests that an engine may have at once."""
    return settled.frontend.limits.max_queue + _BEYOND_QUEUE


def ingress_settings(settled: Settled) -> dict[str, Any]:
    """Say how Serve is to run the ingresses."""
    read = settled.args
    return {
        "num_replicas": read.ingress_replicas,
        "ray_actor_options": {"num_gpus": 0, "num_cpus": read.cluster.ingress_cpus},
        "max_ongoing_requests": read.max_replicas * _most_requests(settled) + _INGRESS_REQUESTS,
        "graceful_shutdown_timeout_s": read.cluster.drain_s + _AFTER_ENGINES_S,
        "graceful_shutdown_wait_loop_s": _WAIT_LOOP_S,
        "health_check_period_s": _HEALTH_PERIOD_S,
        "health_check_timeout_s": _HEALTH_TIMEOUT_S,
        "max_constructor_retry_count": _TRIES,
        "max_surge_percent": 100,
    }


def uses_gpus(device: str) -> bool:
    """Whether engines run on GPUs: auto takes them where the cluster has some."""
    if device == "auto":
        return bool(ray.is_initialized() and ray.cluster_resources().get("GPU", 0))
    return device == "cuda"
