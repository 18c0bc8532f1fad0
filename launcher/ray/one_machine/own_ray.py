"""A Ray that this process has started, with one application of Serve's."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray import serve
from ray._private.accelerators import get_accelerator_manager_for_resource
from ray._private.ray_logging import global_worker_stdstream_dispatcher

from engine.errors import ArgumentError, LaunchError, ServerError
from launcher.messages.message_parts import Stage
from launcher.ray.one_machine.descendants import bury_orphans, descendants
from launcher.ray.one_machine.failures import failure, of_ours
from launcher.ray.one_machine.listening import has_unsent, process_name
from launcher.ray.one_machine.messages import ClusterConfig

APPLICATION = "krea2"  # its name, in Serve
_STORE_BYTES = 512 * 2**20  # for pictures on their way between two processes, as much as is used
_SHARED_MEMORY = "/dev/shm"
_NO_ENGINE = "ingress"  # the deployment that is of no interest while engines start
_POLL_S = 0.1
_PASSED_ON_S = 1.0  # for a proxy to pass on the last that an ingress has sent
_LAST_ANSWERS_S = 5.0  # for clients to be told that their requests are cut off
_QUIET = {"log_level": "ERROR", "enable_access_log": False}  # of what Serve logs itself; our guard logs requests
_IS_OUR_MISTAKE = 2  # exit code of errors that another attempt would end with, too


class OwnRay:
    """Starts Ray's own processes for a configuration. Raises what Ray does, and `ArgumentError` for too few GPUs.

    on_line: called, in a thread, with the name of a replica and a line that it printed.
    """

    def __init__(self, config: ClusterConfig, on_line: Callable[[str, str], None]) -> None:
        self._config = config
        for name in ("ray", "ray.serve"):  # what they say is for Ray's users, and their logs have it
            logging.getLogger(name).setLevel(logging.ERROR)
        gpus = _gpus() if config.gpus else 0
        if config.gpus > gpus and (gpus or config.args.get("device") == "cuda"):
            message = f"the replicas need {config.gpus} GPUs, and this machine has {gpus}"
            raise ArgumentError(message, parameter="replicas")
        ray.init(
            address="local",
            num_cpus=config.cpus,
            num_gpus=gpus,
            include_dashboard=False,
            object_store_memory=_STORE_BYTES,
            logging_level="ERROR",
            log_to_driver=True,
            _node_ip_address="127.0.0.1",
            _temp_dir=config.folder,
            _plasma_directory=None if _has_room() else config.folder,
            # As important as the command that started it, which Ray's workers are not otherwise. None before they are
            # needed, of which Ray would start one for each of its CPUs.
            _system_config={"worker_niceness": 0, "prestart_worker_first_driver": False},
        )
        global_worker_stdstream_dispatcher.remove_handler("ray_print_logs")
        global_worker_stdstream_dispatcher.add_handler("krea2", lambda said: _hand_on(said, on_line))
        self._processes = {each: process_name(each) for each in descendants()}  # without which there is no Ray

    def serve(self, on_stage: Callable[[Stage], None]) -> None:
        """Serve the application, and return when all of its replicas are ready.

        Raises what ends a replica, and `LaunchError`.
        """
        config = self._config
        serve.start(proxy_location="HeadOnly", http_options={"host": config.host, "port": config.port})
        module, _, name = config.application.partition(":")
        application = getattr(importlib.import_module(module), name)(config.args)
        serve.run_many(
            [serve.RunTarget(application, name=APPLICATION, route_prefix="/", logging_config=_QUIET)],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        deadline = time.monotonic() + config.start_timeout_s
        while not self._is_running(on_stage):
            if time.monotonic() >= deadline:
                raise LaunchError(f"the replicas were not ready within {config.start_timeout_s:g} s")
            time.sleep(_POLL_S)

    def check(self) -> None:
        """Raise `ServerError` if one of the processes has ended that there is no Ray without.

        Buries what others have left, as a replica that is killed leaves its engine.
        """
        bury_orphans(self._processes)
        lost = self._processes.keys() - {*descendants()}
        if lost:
            names = ", ".join(sorted(self._processes[each] for each in lost))
            raise ServerError(f"Ray has ended: of its own processes these are gone: {names}")

    def drain(self, seconds: float, hurry: threading.Event) -> int:
        """Take no more requests, and let those that run end for so many seconds at most, or until this is set. Returns
        how many were cut off.

        Serve would answer with 404 as soon as the application is deleted, as if nothing had ever been there.
        """
        deadline = time.monotonic() + seconds
        cut_off = asyncio.run(_leave(deadline, hurry))
        time.sleep(_PASSED_ON_S)
        while has_unsent(self._config.port) and time.monotonic() < deadline + _LAST_ANSWERS_S:
            time.sleep(_POLL_S)
        return cut_off

    def _is_running(self, on_stage: Callable[[Stage], None]) -> bool:
        application = serve.status().applications[APPLICATION]
        deployments = application.deployments.values()
        messages = [deployment.message for deployment in deployments]
        ours = of_ours(messages)
        if ours is not None and ours.exit_code == _IS_OUR_MISTAKE:
            raise ours
        if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise failure([*messages, application.message])
        states = [each.replica_states for name, each in application.deployments.items() if name != _NO_ENGINE]
        ready, all_of_them = sum(each.get("RUNNING", 0) for each in states), sum(sum(each.values()) for each in states)
        on_stage(Stage(name="starting engines" + (f", {ready} of {all_of_them} ready" if ready else "")))
        return bool(application.status == "RUNNING")


async def _leave(deadline: float, hurry: threading.Event) -> int:
    """Have ingresses take no more requests, and wait until they have none. Returns how many the deadline cuts off, or
    whoever is in a hurry."""
    ingresses = serve.get_deployment_handle(_NO_ENGINE, APPLICATION)
    cut_off = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, deadline - time.monotonic()) + _LAST_ANSWERS_S):
            while True:
                is_late = hurry.is_set() or time.monotonic() >= deadline
                running = await ingresses.broadcast("leave", is_late).results_async()  # of those that it knows already
                cut_off = max(cut_off, is_late * sum(running))
                if running and not sum(running):
                    break
                await asyncio.sleep(_POLL_S)
    return cut_off


def _gpus() -> int:
    """How many GPUs Ray would find, which takes no context on any."""
    manager = get_accelerator_manager_for_resource("GPU")
    count: int = manager.get_current_node_num_accelerators()
    visible = manager.get_current_process_visible_accelerator_ids()
    return count if visible is None else min(count, len(visible))


def _has_room() -> bool:
    """Whether shared memory has room for what is passed between processes. Docker gives a container 64 MB, and other
    places less: a file in the folder does too, a little slower."""
    with contextlib.suppress(OSError):
        return shutil.disk_usage(_SHARED_MEMORY).free > _STORE_BYTES and os.access(_SHARED_MEMORY, os.W_OK)
    return False


def _hand_on(said: dict[str, Any], on_line: Callable[[str, str], None]) -> None:
    """Hand on what replicas print; what Ray's own processes do is in Ray's logs."""
    kind, _, name = str(said.get("actor_name") or "").partition(":")
    if kind == "ServeReplica":
        for line in said["lines"]:
            on_line(f"{name.rpartition(':')[2].lower()} {said['pid']}", line)
