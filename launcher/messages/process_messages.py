"""What our own processes tell each other, in msgpack: configurations on stdin, steps for ranks, and their answers."""

from __future__ import annotations

from typing import TypeVar

import msgspec

import engine
from engine.config.engine_config import EngineConfig
from engine.step import BuiltPlan, Step, StepTimes
from launcher.messages.client_messages import Message
from launcher.messages.limits import Limits

T = TypeVar("T")

# ---- what a process gets on its stdin, and what the front-end answers on its stdout


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


def ranks_address(run_folder: str, generation: int) -> str:
    return f"ipc://{run_folder}/ranks-{generation}"


def lifeline_path(run_folder: str) -> str:
    """The unix socket that takes the place of a stdin pipe between the front-end and ranks it did not start."""
    return f"{run_folder}/lifeline"


def door_path(run_folder: str) -> str:
    """The file with the `Door`, as json. It is there before the lifeline is."""
    return f"{run_folder}/door"


def route(rank: int) -> bytes:
    """The ZMQ routing id of a rank."""
    return b"rank-%d" % rank


class Started(Message, frozen=True, kw_only=True):
    """The ranks are ready, and clients may connect."""

    address: str


class Ended(Message, frozen=True, kw_only=True):
    """Why the front-end ends, if not because it was told to."""

    code: str
    message: str
    parameter: str | None


FrontendReport = Started | Ended


# ---- front-end → rank


class Load(Message, frozen=True, kw_only=True):
    """Load the checkpoint, warm the device up if that is asked for, and answer `Ready`.

    `warm_up_sizes`: width and height of images to expect besides those of the default size.
    """

    engine: EngineConfig
    warm_up: bool
    warm_up_sizes: tuple[tuple[int, int], ...]
    timeout_s: float


class Execute(Message, frozen=True, kw_only=True):
    """Execute a step, and answer `StepDone`."""

    step: Step


Command = Load | Execute

# ---- rank → front-end


class Hello(Message, frozen=True, kw_only=True):
    """The rank can hear."""

    rank: int
    version: str = engine.__version__


class Alive(Message, frozen=True, kw_only=True):
    """This connection is the lifeline of a rank on another machine."""

    rank: int


class Ready(Message, frozen=True, kw_only=True):
    """The rank has its weights. `memory_plan`: what it keeps where, for people, if it was told to save memory. `link`:
    bytes a second that it sends, and seconds of an operation that sends next to nothing, where that was measured.
    `decoding_bytes_per_element`: as `DecodeMemory` in `engine.planning.step_memory` has it."""

    rank: int
    device: str
    device_name: str = ""
    link: tuple[float, float] | None = None
    memory: dict[str, int]
    decoding_bytes_per_element: int = 4
    attention: dict[str, str]
    memory_plan: tuple[str, ...] = ()


class StepDone(Message, frozen=True, kw_only=True):
    rank: int
    number: int
    times: StepTimes


class Decoded(Message, frozen=True, kw_only=True):
    """An image, before a binary frame of height · width · 3 bytes. Not `finite`: it shows nothing, since its latents
    are not numbers."""

    rank: int
    job_id: int
    width: int
    height: int
    decode_s: float
    finite: bool


class Previewed(Message, frozen=True, kw_only=True):
    """A preview of an image, before a binary frame of height · width · 3 bytes."""

    rank: int
    job_id: int
    step: int
    width: int
    height: int


class JobFailed(Message, frozen=True, kw_only=True):
    """The only rank has given a job up and goes on with the others. No image of it comes, and steps that are on their
    way do nothing for it."""

    rank: int
    job_id: int
    code: str
    message: str


class PlanBuilt(Message, frozen=True, kw_only=True):
    """The rank has used idle time for an attention plan."""

    rank: int
    plan: BuiltPlan


class RankFailed(Message, frozen=True, kw_only=True):
    """The rank cannot go on. It stays alive for a moment, so that its peers do not fail before it is heard."""

    rank: int
    code: str
    message: str
    parameter: str | None


Report = Hello | Alive | Ready | StepDone | Decoded | Previewed | JobFailed | PlanBuilt | RankFailed

# ---- decoding

decode_command = msgspec.msgpack.Decoder(Command).decode
decode_report = msgspec.msgpack.Decoder(Report).decode
decode_frontend_report = msgspec.msgpack.Decoder(FrontendReport).decode


def decode_config(data: bytes, kind: type[T]) -> T:
    return msgspec.msgpack.decode(data, type=kind)
