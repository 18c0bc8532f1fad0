"""Which devices this machine has, asked of a child: torch takes seconds to import, and a GPU's memory to ask it."""

from __future__ import annotations

import subprocess
import sys
from itertools import takewhile

import msgspec

from engine.config.engine_config import EngineConfig
from engine.errors import ArgumentError, LaunchError
from launcher.auto_mode.prediction import Devices
from launcher.processes import child_environment, python_command

_ASKED_S = 120.0  # a first context on each of several GPUs


class Gpus(msgspec.Struct, frozen=True, kw_only=True):
    """The first GPUs, as far as they are alike. free: bytes of the one that has least."""

    name: str
    count: int
    free: int


def find_devices(engine: EngineConfig, ranks: int | None = None) -> Devices:
    """What ranks can have; a CPU is one device. ranks: if that many have been started already.

    Raises `ArgumentError` when CUDA is asked for and missing, and `LaunchError` if the child fails.
    """
    gpus = _ask() if engine.device != "cpu" else None
    if gpus is None and engine.device == "cuda":
        raise ArgumentError("device cuda is not available: torch finds no CUDA device", parameter="device")
    if gpus is None:
        return Devices("cpu", ranks or 1, ranks=ranks)
    return Devices(gpus.name, max(gpus.count, ranks or 0), gpus.free, ranks)


def report() -> None:
    """The child's life: a line of json, null where torch finds no GPU."""
    import torch

    gpus = None
    count = torch.cuda.device_count()
    if count:
        name = torch.cuda.get_device_name(0)
        like = list(takewhile(lambda index: torch.cuda.get_device_name(index) == name, range(count)))
        gpus = Gpus(name=name, count=len(like), free=min(torch.cuda.mem_get_info(index)[0] for index in like))
    sys.stdout.buffer.write(msgspec.json.encode(gpus))


def _ask() -> Gpus | None:
    try:
        child = subprocess.run(
            python_command("_devices"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=child_environment(),
            timeout=_ASKED_S,
            check=True,
        )
        return msgspec.json.decode(child.stdout, type=Gpus | None)
    except subprocess.TimeoutExpired:
        raise LaunchError(f"which GPUs there are was not known within {_ASKED_S:g} s") from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        raise LaunchError(f"GPUs cannot be asked for: {lines[-1] if lines else error.returncode}") from None
    except msgspec.DecodeError as error:
        raise LaunchError(f"GPUs cannot be asked for: {error}") from None
