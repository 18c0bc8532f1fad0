"""What a process gets on its stdin, as msgpack, and what the front-end answers on its stdout."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from engine.config.engine_config import EngineConfig
from launcher.messages.client_messages import Message
from launcher.messages.limits import Limits

T = TypeVar("T")

# ---- on the stdin of a process


class LoraFile(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA to load at the start. `strength`: of requests that choose it and name none."""

    name: str
    path: str
    strength: float = 1.0


class FrontendConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How to run a front-end.

    `run_folder` is made when it starts; `rpc` None is a socket in there; `rpc_keys` the folder of keys that
    says who may talk to it, None for everybody who reaches it. `external_ranks`: somebody else starts the
    ranks, which come to a run folder that exists already; `ranks_host`: the name by which those on other machines know
    this one, None if there are none. A step that takes longer than `step_timeout_s` counts as
    hanging, and sooner once it is known how long steps take. `drain_s`: for what runs to be finished when it stops.
    `lora_dir`: the folder from which clients may load LoRAs, None if they may not. `block_form`: what most of
    the blocks' matrices are held as.
    """

    engine: EngineConfig
    run_folder: str = ""
    rpc: str | None = None
    rpc_keys: str | None = None
    limits: Limits = msgspec.field(default_factory=Limits)
    loras: tuple[LoraFile, ...] = ()
    lora_dir: str | None = None
    external_ranks: bool = False
    ranks_host: str | None = None
    warm_up: bool = True
    warm_up_sizes: tuple[tuple[int, int], ...] = ()
    drain_s: float = 0.0
    start_timeout_s: float = 600.0
    step_timeout_s: float = 300.0
    lease_s: float = 20.0
    block_form: str = "float"


class HttpConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How to run the HTTP process.

    `socket_fd` is a socket that listens already, inherited from the parent, which keeps it while the process is
    replaced. `rpc` is where the front-end listens, `rpc_key` the file of keys to use there. Without `api_keys`
    nobody is asked for one. `allowed_hosts`: further names that Host may have where `host` is loopback. `public_url`:
    what links begin with, None for the base of the request that asks for them.
    """

    engine: EngineConfig
    limits: Limits
    host: str = "127.0.0.1"
    socket_fd: int = -1
    rpc: str = ""
    rpc_key: str | None = None
    model_names: tuple[str, ...] = ("demo",)
    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    public_url: str | None = None
    max_body_bytes: int = 2**20
    log_format: str = "json"


class Door(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank on another machine needs to come to the front-end: its port, and CURVE keys, of which the ranks'
    is one pair for all of them."""

    port: int
    server_public: str
    rank_public: str
    rank_secret: str


class RankConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which rank a process is, and where its front-end listens. What to load comes over the wire.

    `local_rank`, `local_ranks`: which it is of the ranks of this machine, and how many these are. The front-end listens
    in `run_folder`, or behind a `door` if it is on another machine. `generation` counts the groups of ranks that it has
    had. `store_file` is where spawned ranks meet; None under torchrun, which has a place of its own.
    """

    rank: int
    local_rank: int
    local_ranks: int
    run_folder: str = ""
    door: Door | None = None
    generation: int = 0
    store_file: str | None


# ---- on the front-end's stdout


class Started(Message, frozen=True, kw_only=True):
    """The ranks are ready, and clients may connect."""

    address: str


class Ended(Message, frozen=True, kw_only=True):
    """Why the front-end ends, if not because it was told to."""

    code: str
    message: str
    parameter: str | None


FrontendReport = Started | Ended

decode_frontend_report = msgspec.msgpack.Decoder(FrontendReport).decode


def decode_config(data: bytes, kind: type[T]) -> T:
    """Read the configuration of a process."""
    return msgspec.msgpack.decode(data, type=kind)
