"""Says with its environment how a Ray of our own runs, and who may use it: whoever has a token that is nowhere else.

The token is in the memory of Ray's processes and in their environments, which only this user and root can read.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import MutableMapping

TOKEN = "RAY_AUTH_TOKEN"
# What says which Ray to join, with which token and what else to bring.
_OF_ANOTHER_RAY = (
    "RAY_ADDRESS",
    "RAY_AUTH_TOKEN_PATH",
    "RAY_JOB_CONFIG_JSON_ENV_VAR",
    "RAY_NAMESPACE",
    "RAY_REDIS_ADDRESS",
    "RAY_RUNTIME_ENV_HOOK",
    "RAY_TMPDIR",
)
_SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is told to anybody
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # replicas run in the environment that there is
    "RAY_DEDUP_LOGS": "0",
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",  # Serve would wait for one that hangs as for one that draws
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",  # bytes to a replica are no objects of the store then, which costs less
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),  # of pictures, for which 4 MiB are not enough
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "launcher.ray.web.proxy_callback:middlewares",
    "KREA2_ACCESS_TOLD": "1",  # who can use the cluster, by the command that runs it: ingresses need not log that
    "FORWARDED_ALLOW_IPS": "",  # as krea2 serve: no header of a client says which address it has
}


def set_up(environment: MutableMapping[str, str], folder: str) -> None:
    """Set it up for a new Ray in `folder`, which only this user may enter, before Ray is imported: with a new token."""
    for name in _OF_ANOTHER_RAY:
        environment.pop(name, None)
    environment.update(_SETTINGS)
    environment[TOKEN] = secrets.token_hex(32)
    environment["TMPDIR"] = os.path.join(folder, "tmp")  # of the engines, so that whatever ends them, this goes too
    os.mkdir(environment["TMPDIR"])
