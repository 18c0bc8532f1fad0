"""What the front-end and its ranks tell each other, in msgpack: commands, reports, and where they meet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

import engine
from engine.config.engine_config import EngineConfig
from engine.pictures.pixels import Pixels
from engine.scheduling.cost import Work
from engine.scheduling.step_work import DoneWork
from engine.step import BuiltPlan, Picture, Step, StepTimes
from launcher.messages.client_messages import Message

# ---- front-end → rank


class Load(Message, frozen=True, kw_only=True):
    """Load the checkpoint, warm up if asked, for images of these sizes (width, height in pixels) too; reply `Ready`."""

    engine: EngineConfig
    warm_up: bool
    warm_up_sizes: tuple[tuple[int, int], ...]
    timeout_s: float


class Execute(Message, frozen=True, kw_only=True):
    """Execute a step, and reply `StepDone`. To rank 0 the `pixel_frames` of the pictures that it encodes follow."""

    step: Step


Command = Load | Execute

# ---- rank → front-end


class Hello(Message, frozen=True, kw_only=True):
    """The rank listens. version: of its package, which must be the front-end's."""

    rank: int
    version: str = engine.__version__


class Alive(Message, frozen=True, kw_only=True):
    """This connection is the lifeline of a rank on another machine."""

    rank: int


class Loading(Message, frozen=True, kw_only=True):
    """The rank has read `done` of the `total` bytes of its weights: when it begins, some times a second, and at the
    end."""

    rank: int
    done: int
    total: int


class Ready(Message, frozen=True, kw_only=True):
    """The rank has its weights. memory_plan: what it keeps where, for people, if it was told to save memory.

    link: bytes a second that it sends, and seconds of an operation that sends next to nothing, where that was measured.
    gpu: the UUID of its GPU, visible_gpus: of all that it sees, in CUDA's order. memory: bytes by what they hold.
    decoding_bytes_per_element: as `DecodeMemory` in `engine.planning.step_memory`.
    """

    rank: int
    device: str
    device_name: str = ""
    gpu: str = ""
    visible_gpus: tuple[str, ...] = ()
    link: tuple[float, float] | None = None
    memory: dict[str, int]
    decoding_bytes_per_element: int = 4
    attention: dict[str, str]
    memory_plan: tuple[str, ...] = ()


class StepDone(Message, frozen=True, kw_only=True):
    """The rank has executed a step."""

    rank: int
    number: int
    times: StepTimes


class Decoded(Message, frozen=True, kw_only=True):
    """An image, before a binary frame (height, width, 3) of bytes; not `finite` if its latents are not numbers."""

    rank: int
    job_id: int
    width: int
    height: int
    decode_s: float
    finite: bool


class Previewed(Message, frozen=True, kw_only=True):
    """A preview of an image, before a binary frame (height, width, 3) of bytes."""

    rank: int
    job_id: int
    step: int
    width: int
    height: int


class JobFailed(Message, frozen=True, kw_only=True):
    """The only rank has given a job up: no image of it comes, and steps that are on their way do nothing for it."""

    rank: int
    job_id: int
    code: str
    message: str


class PlanBuilt(Message, frozen=True, kw_only=True):
    """The rank has used idle time for an attention plan."""

    rank: int
    plan: BuiltPlan


class RankFailed(Message, frozen=True, kw_only=True):
    """The rank cannot go on. It stays alive for some seconds, so that its peers do not fail before it is heard."""

    rank: int
    code: str
    message: str
    parameter: str | None


Report = Hello | Alive | Loading | Ready | StepDone | Decoded | Previewed | JobFailed | PlanBuilt | RankFailed

# ---- the pixels that are sent with a step


def pixel_frames(step: Step, pixels: Mapping[int, Pixels]) -> list[bytes]:
    """Give the binary frames of the pictures that a step encodes, in its order: for each, height · width · 3 bytes, and
    if it is masked a frame more, with a byte for each latent pixel."""
    frames = []
    for picture in step.encode:
        held = pixels[picture.picture_id]
        frames += [held.rgb, held.mask] if held.mask is not None else [held.rgb]
    return frames


def read_pixels(step: Step, frames: Sequence[bytes]) -> dict[int, Pixels]:
    """Read these frames: the pixels of each picture by its id; none on ranks that get no frames."""
    if not frames:
        return {}
    rest = iter(frames)
    return {picture.picture_id: _next_pixels(picture, rest) for picture in step.encode}


def _next_pixels(picture: Picture, frames: Iterator[bytes]) -> Pixels:
    return Pixels(picture.width, picture.height, next(frames), next(frames) if picture.masked else None)


decode_command = msgspec.msgpack.Decoder(Command).decode
decode_report = msgspec.msgpack.Decoder(Report).decode

# ---- what comes of a step


@dataclass(frozen=True)
class DoneStep:
    """A step that all ranks have executed. times: the slowest rank's. work: at most. sent: when it was, and behind:
    whether ranks were still busy with another then. by_rank: when each rank was heard, and its times; both as
    `time.monotonic` has it. did: what of its work was done; None while nobody has reckoned that."""

    step: Step
    times: StepTimes
    work: Work
    sent: float
    behind: bool
    by_rank: dict[int, tuple[float, StepTimes]]
    did: DoneWork | None = None


# ---- where they meet


def ranks_address(run_folder: str, generation: int) -> str:
    """Give the address where the front-end listens for a group of ranks of this machine."""
    return f"ipc://{run_folder}/ranks-{generation}"


def lifeline_path(run_folder: str) -> str:
    """Give the unix socket that stands for a stdin pipe between the front-end and ranks it did not start."""
    return f"{run_folder}/lifeline"


def door_path(run_folder: str) -> str:
    """Give the file with the `Door`, as json, which is there before the lifeline is."""
    return f"{run_folder}/door"


def route(rank: int) -> bytes:
    """Give the ZMQ routing id of a rank."""
    return b"rank-%d" % rank
