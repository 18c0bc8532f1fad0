"""The process of a cluster that takes HTTP requests: the application of `krea2 serve`, over a link to all engines."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from launcher.http.app import make_app
from launcher.http.server_process import check_http
from launcher.logs import configure_logs, log_event
from launcher.messages.api_keys import others_can_read, read_keys
from launcher.messages.configs import HttpConfig
from launcher.processes import forget_secrets
from launcher.ray.settled import settle
from launcher.ray.web.behind_proxy import BehindProxy

if TYPE_CHECKING:
    from launcher.http.answers.link import Link

_KEY = "KREA2_API_KEY"
_NAME = b"ingress"  # that it has one: the front-ends know the engines' actors, and believe them whose a request is


def make_ingress(args: Mapping[str, Any], link: Link) -> BehindProxy:
    """Make the application of an ingress, with the keys of its environment and of the file that the arguments name.

    Raises `ArgumentError`, `CheckpointError`.
    """
    cluster = settle(args)
    configure_logs("json", process="ingress")
    http = cluster.args.http
    environment_key = os.environ.get(_KEY, "")
    forget_secrets(os.environ)
    keys: dict[str, Any] = {"api_keys": tuple(environment_key.split())}
    if http.api_key_file is not None:
        keys |= {"api_key_file": http.api_key_file, "file_keys": read_keys(http.api_key_file)}
        if others_can_read(http.api_key_file):
            log_event("every user of this machine can read the file of keys", level="warning", file=http.api_key_file)
    config = HttpConfig(
        engine=cluster.frontend.engine,
        limits=cluster.frontend.limits,
        host=http.host,
        model_names=cluster.args.model_names(),
        any_model=http.any_model,
        allowed_hosts=http.allowed_host,
        allowed_origins=http.allow_origin,
        public_url=http.public_url,
        max_body_bytes=http.max_body_bytes,
        client_name=_NAME,
        created=int(time.time()),
        run_folder=cluster.args.cluster.images_folder or tempfile.mkdtemp(prefix="krea2-ingress-"),
        **keys,
    )
    if check_http(config, insecure=http.insecure):
        log_event("whoever reaches the proxies can use this cluster", level="warning", host=http.host)
    return BehindProxy(make_app(config, link))
