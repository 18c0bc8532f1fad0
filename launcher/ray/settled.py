"""Settles what can be settled of a cluster's arguments before anything starts, as `krea2 serve` does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from engine.config.model_config import ModelConfig
from engine.errors import Krea2Error
from launcher.http.server_process import check_http
from launcher.licence.notice import told_unfiltered
from launcher.messages.configs import FrontendConfig, HttpConfig
from launcher.ray.args import ClusterArgs
from launcher.ray.engine.loras import declared_loras
from launcher.requests.check import parse_size
from launcher.requests.lora_files import located, open_lora
from launcher.setup.configure import configure
from launcher.setup.nearest import nearest_to_given


@dataclass(frozen=True)
class Settled:
    """Arguments that were checked, and what became of them. warnings: what to tell people."""

    args: ClusterArgs
    frontend: FrontendConfig
    model: ModelConfig
    warnings: tuple[str, ...]


def settle(args: Mapping[str, Any]) -> Settled:
    """Check all that `krea2 serve` checks before it starts anything, and open the model's files, and those of LoRAs.

    A model and LoRAs that are named by their Hugging Face repositories are downloaded. Raises `ArgumentError`,
    `CheckpointError`, `LoraError`.
    """
    read = ClusterArgs.of(args)
    merge = read.engine.get("merge_lora", False)
    options = {name: value for name, value in read.engine.items() if name != "loras" or merge}
    try:
        frontend, model, warnings = configure(options, auto=False, workload=_no_workload, tell=lambda *_: None)
        if not merge:
            for lora in declared_loras({"loras": read.engine.get("loras", ())}, read.engine.get("lora_dir")).values():
                left_out = open_lora(located(lora).path, model, lenient=frontend.engine.lora_lenient).left_out
                warnings += (f"{lora.path}: {left_out}",) if left_out else ()
    except Krea2Error as error:
        if meant := nearest_to_given(dict(read.engine), error.message):
            error.message += f"; did you mean {meant}?"
            error.args = (error.message,)
        raise
    told = told_unfiltered(frontend.engine.demo, frontend.filters)
    warnings += () if told is None else (told,)
    sizes = tuple(parse_size("warm_up_sizes", size, model, frontend.limits) for size in read.cluster.warm_up_sizes)
    check_http(_unkeyed(read, frontend), insecure=True)  # whether there are keys is known in the ingress alone
    frontend = msgspec.structs.replace(
        frontend, warm_up_sizes=sizes, hash_files=True, lora_dir=None, parent_loads_loras=True
    )
    return Settled(read, frontend, model, warnings)


def _no_workload(*_: object) -> Any:
    raise AssertionError("nothing is chosen by prediction")


def _unkeyed(read: ClusterArgs, frontend: FrontendConfig) -> HttpConfig:
    http = read.http
    return HttpConfig(
        engine=frontend.engine,
        limits=frontend.limits,
        host=http.host,
        model_names=read.model_names(),
        allowed_hosts=http.allowed_host,
        allowed_origins=http.allow_origin,
        public_url=http.public_url,
    )
