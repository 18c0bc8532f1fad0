"""Defines what a process gets on its stdin, as msgpack, and what a front-end answers on its stdout."""

from __future__ import annotations

import msgspec

from engine.config.engine_config import EngineConfig
from launcher.messages.api_keys import ApiKey
from launcher.messages.client_messages import Message
from launcher.messages.limits import Limits
from launcher.messages.message_parts import Stage

MAX_WORKERS = 8  # HTTP processes

# ---- on the stdin of a process


class LoraFile(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA to load at the start. strength: for requests that choose it and give none."""

    name: str
    path: str
    strength: float = 1.0


class FilterSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A content filter, as the operator wants it (`launcher/filters/spec.py`).

    name: of the kind of filter; label: of this one, in findings, metrics and errors. value and options: what it is made
    of. thresholds: by moderation (`auto`, `low`), action (`block`, `blur`, `log`) and category, "*" for all others.
    workers: processes. timeout_s: for a check, waiting included. batch: how much it gets at once, None for what it says
    itself. only: `prompts` or `images`, None for both.
    """

    name: str
    label: str
    value: str = ""
    options: dict[str, str] = {}
    thresholds: dict[str, dict[str, dict[str, float]]] = {}
    workers: int = 1
    timeout_s: float = 20.0
    batch: int | None = None
    only: str | None = None


class DisclosureConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What files say of where their pictures come from. xmp: that a model drew them; c2pa_certificate, c2pa_key and
    c2pa_timestamp: what manifests are signed with, which images then have (`ManifestSigner`)."""

    xmp: bool = True
    c2pa_certificate: str | None = None
    c2pa_key: str | None = None
    c2pa_timestamp: str | None = None


class FrontendConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How to run a front-end: a flat message, a field for each thing that its parent decides, so 24.

    run_folder: for sockets; made by the front-end, or before by the external_ranks, which somebody else starts.
    ranks_host: this machine's name for ranks on others, None if there are none. rpc: where clients come, None for a
    socket in run_folder; rpc_keys: the folder of their keys, None to let everybody in. key_limits: the file that says
    how much each key may have, None for no such limits. lora_dir: the folder from which
    clients may load LoRAs, None for none. warm_up_sizes: in pixels. drain_s: seconds for what runs to be
    finished when it stops. parent_loads_loras: whether client_name may load whatever files it names, others none but of
    lora_dir. A rank that loads for start_timeout_s counts as lost, a step that takes step_timeout_s as
    hanging, and sooner once it is known how long steps take; a client that is silent for lease_s is gone, but for
    the parent's own, client_name, with which the front-end ends. block_format:
    the weight format of most of the blocks' matrices. hash_files: read files whose hashes are not known, for pictures
    to say. filters: what checks prompts and pictures; filter_fail_open: let through what these cannot check.
    audit_log: the folder of an audit log, None for none; audit_content: keep prompts themselves there.
    """

    engine: EngineConfig
    run_folder: str = ""
    rpc: str | None = None
    rpc_keys: str | None = None
    key_limits: str | None = None
    limits: Limits = msgspec.field(default_factory=Limits)
    loras: tuple[LoraFile, ...] = ()
    lora_dir: str | None = None
    parent_loads_loras: bool = False
    external_ranks: bool = False
    ranks_host: str | None = None
    warm_up: bool = True
    warm_up_sizes: tuple[tuple[int, int], ...] = ()
    drain_s: float = 0.0
    start_timeout_s: float = 600.0
    step_timeout_s: float = 300.0
    lease_s: float = 20.0
    client_name: bytes | None = None
    block_format: str = "float"
    hash_files: bool = False
    filters: tuple[FilterSpec, ...] = ()
    filter_fail_open: bool = False
    disclosure: DisclosureConfig = DisclosureConfig()
    audit_log: str | None = None
    audit_content: bool = False


class HttpConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How to run the HTTP process: a flat message, a field for each thing that its parent decides, so 24.

    socket_fd: a socket that listens already, inherited from the parent, which keeps it while the process is replaced.
    worker: its number if there are several. run_folder: for files that outlive it. created: when the server began, in
    seconds since 1970. rpc: where the front-end listens; rpc_key: the file of keys to use there; client_name: by which
    it knows that this process is one of its own, None for one that is not. api_keys and file_keys, which the parent has
    read from api_key_file: none to ask nobody for one. allowed_hosts: further names that Host may have where `host` is
    loopback. any_model: whether other names than model_names are served as well. allowed_origins: whose pages may use
    the server from another origin, "*" for everybody's. public_url: what links begin with, whose host is
    another that Host may have; None for the base of the request that asks for them. images_folder: for images behind
    links, where servers on several machines share one, None for the run_folder; links: whether there may be any.
    audit_log: the folder for reports of pictures, None to take none; audit_content: keep these pictures, too.
    """

    engine: EngineConfig
    limits: Limits
    host: str = "127.0.0.1"
    socket_fd: int = -1
    worker: int | None = None
    run_folder: str = ""
    created: int = 0
    rpc: str = ""
    rpc_key: str | None = None
    client_name: bytes | None = None
    model_names: tuple[str, ...] = ("demo",)
    any_model: bool = False
    api_keys: tuple[str, ...] = ()
    api_key_file: str | None = None
    file_keys: tuple[ApiKey, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    public_url: str | None = None
    max_body_bytes: int = 2**20
    images_folder: str | None = None
    links: bool = True
    audit_log: str | None = None
    audit_content: bool = False
    log_format: str = "json"


class Door(msgspec.Struct, frozen=True, kw_only=True):
    """How ranks on other machines reach the front-end: its port, and CURVE keys, of which all ranks share one pair."""

    port: int
    server_public: str
    rank_public: str
    rank_secret: str


class RankConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which rank a process is, and where its front-end listens. What to load comes from there.

    local_rank: its number among the local_ranks on this machine. The front-end listens in run_folder, or behind a door
    if it is on another machine. generation: the number of groups of ranks before this one. store_file: where spawned
    ranks meet; None under torchrun, which has a place of its own.
    """

    rank: int
    local_rank: int
    local_ranks: int
    run_folder: str = ""
    door: Door | None = None
    generation: int = 0
    store_file: str | None


class PicturesConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How to run the process that reads pictures: socket_fd is its end of a socket pair, inherited from the parent."""

    socket_fd: int


class FilterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How to run a content filter's process: socket_fd is its end of a socket pair, inherited from the parent."""

    socket_fd: int
    spec: FilterSpec


# ---- on the stdout of a process


class Beat(msgspec.Struct, frozen=True):
    """The event loop of an HTTP process runs."""


class Starting(Message, frozen=True, kw_only=True):
    """How far the first ranks are on their way: comes some times a second, and for a last time before `Started`."""

    stage: Stage


class Started(Message, frozen=True, kw_only=True):
    """The ranks are ready, and clients may connect."""

    address: str


class Ended(Message, frozen=True, kw_only=True):
    """Why the front-end ends, if not because it was told to."""

    code: str
    message: str
    parameter: str | None


decode_frontend_report = msgspec.msgpack.Decoder(Starting | Started | Ended).decode
