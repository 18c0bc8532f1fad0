"""Finds this machine's devices. A child asks torch, which takes seconds to import and memory of each GPU to ask it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import takewhile

import msgspec

from engine.config.engine_config import EngineConfig
from engine.errors import ArgumentError, LaunchError
from launcher.auto_mode.prediction import Devices
from launcher.processes import child_environment, python_command

_ASKED_S = 120.0  # seconds for the child: a first context on each of several GPUs


def find_devices(engine: EngineConfig, ranks: int | None = None) -> Devices:
    """Find the devices that ranks can have: the first GPUs, as far as they are alike, or the CPU as one device.

    ranks: where so many have been started already. Raises `ArgumentError` when CUDA is asked for and missing, and
    `LaunchError` if the child fails.
    """
    gpus = _ask() if engine.device != "cpu" else None
    if gpus is None and engine.device == "cuda":
        raise ArgumentError("device cuda is not available: torch finds no CUDA device", parameter="device")
    if gpus is None:
        return Devices("cpu", ranks or 1, ranks=ranks)
    return replace(gpus, count=max(gpus.count, ranks or 0), ranks=ranks)


def report() -> None:
    """Be the child: write a line of json, null where torch finds no GPU. memory: of the GPU that has least."""
    import torch

    gpus = None
    count = torch.cuda.device_count()
    if count:
        name = torch.cuda.get_device_name(0)
        like = list(takewhile(lambda index: torch.cuda.get_device_name(index) == name, range(count)))
        gpus = Devices(name, len(like), min(torch.cuda.mem_get_info(index)[0] for index in like))
    sys.stdout.buffer.write(msgspec.json.encode(gpus))


def _ask() -> Devices | None:
    """Ask a child for the GPUs."""
    try:
        child = subprocess.run(
            python_command("_devices"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=child_environment(),
            timeout=_ASKED_S,
            check=True,
        )
        return msgspec.json.decode(child.stdout, type=Devices | None)
    except subprocess.TimeoutExpired:
        raise LaunchError(f"which GPUs there are was not known within {_ASKED_S:g} s") from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        raise LaunchError(f"GPUs cannot be asked for: {lines[-1] if lines else error.returncode}") from None
    except msgspec.DecodeError as error:
        raise LaunchError(f"GPUs cannot be asked for: {error}") from None
