"""The process of a cluster that takes HTTP requests: the application of `krea2 serve`, over a link to all engines."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engine.errors import ArgumentError
from launcher.http.app import make_app
from launcher.http.guard import Guard
from launcher.http.server_process import check_http
from launcher.http.workers.held_files import HeldFiles, shared_files
from launcher.logs import log_event
from launcher.messages.api_keys import others_can_read, read_keys
from launcher.messages.configs import HttpConfig
from launcher.processes import forget_secrets
from launcher.ray.web.behind_proxy import BehindProxy
from launcher.ray.web.ingresses import Ingresses
from launcher.run_folder import RunFolder

if TYPE_CHECKING:
    from launcher.http.answers.link import Link
    from launcher.ray.settled import Settled

_KEY = "KREA2_API_KEY"
_LOOK_S = 5.0  # between looks whether the file of keys has changed
_NAME = b"ingress"  # that it has one: the front-ends know the engines' actors, and believe them whose a request is

Beside = Coroutine[Any, Any, None]


def make_ingress(settled: Settled, link: Link, ingresses: Ingresses) -> tuple[BehindProxy, list[Beside]]:
    """Make the application of an ingress, with the keys of its environment and of the file that the arguments name.

    Returns what is to run beside it for its whole life, too. Raises `ArgumentError`.
    """
    config = ingress_config(settled)
    folder = RunFolder.make()  # which the next ingress of this machine removes if this one is killed
    config = msgspec.structs.replace(config, run_folder=folder.path)
    guard = make_app(config, link, neighbours=ingresses.neighbours, join_counts=ingresses.metrics)
    beside: list[Beside] = [_sweeping(config, folder)]
    if config.api_key_file is not None:
        beside.append(_reading_keys(guard, config.api_key_file))
    return BehindProxy(guard), beside


def ingress_config(settled: Settled) -> HttpConfig:
    """Make the configuration of its application, but for its run folder. Raises `ArgumentError`."""
    http, cluster = settled.args.http, settled.args.cluster
    if cluster.images_folder is not None and not Path(cluster.images_folder).is_dir():
        raise ArgumentError.of("images_folder", "a folder on every node that runs an ingress", cluster.images_folder)
    is_told = "KREA2_ACCESS_TOLD" in os.environ
    keys: dict[str, Any] = {"api_keys": tuple(os.environ.get(_KEY, "").split())}
    forget_secrets(os.environ)
    if http.api_key_file is not None:
        keys |= {"api_key_file": http.api_key_file, "file_keys": read_keys(http.api_key_file)}
        if others_can_read(http.api_key_file) and not is_told:
            log_event("every user of this machine can read the file of keys", level="warning", file=http.api_key_file)
    config = HttpConfig(
        engine=settled.frontend.engine,
        limits=settled.frontend.limits,
        host=http.host,
        model_names=settled.args.model_names(),
        any_model=http.any_model,
        allowed_hosts=http.allowed_host,
        allowed_origins=http.allow_origin,
        public_url=http.public_url,
        max_body_bytes=http.max_body_bytes,
        client_name=_NAME,
        created=int(time.time()),
        images_folder=cluster.images_folder,
        links=settled.args.ingress_replicas == 1 or cluster.images_folder is not None,
        audit_log=settled.frontend.audit_log,
        audit_content=settled.frontend.audit_content,
        **keys,
    )
    if check_http(config, insecure=http.insecure) and not is_told:
        log_event("whoever reaches the proxies can use this cluster", level="warning", host=http.host)
    return config


async def _sweeping(config: HttpConfig, folder: RunFolder) -> None:
    """Remove images behind links that are held no more, and at the end the folder of those that this process held."""
    files = HeldFiles(config.run_folder) if config.images_folder is None else shared_files(config.images_folder)
    try:
        await files.sweep()
    finally:
        folder.remove()


async def _reading_keys(guard: Guard, file: str) -> None:
    """Read the file of keys again whenever it has changed: an actor gets no SIGHUP."""
    known = _stamp(file)
    while True:
        await asyncio.sleep(_LOOK_S)
        stamp = await asyncio.to_thread(_stamp, file)
        if stamp != known:
            known = stamp
            await asyncio.to_thread(guard.read_keys_again)


def _stamp(file: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
