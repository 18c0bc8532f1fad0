"""Chooses the mode for `--parallel auto`, for the devices that this machine has, and says why.

A child process asks torch for them: to import torch takes seconds, and to ask it takes memory of each GPU.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import takewhile
from typing import Any

import msgspec

from engine.checkpoint.weight_format import Weights
from engine.config.engine_config import EngineConfig
from engine.errors import ArgumentError, LaunchError
from launcher.auto_mode.measurements import recall, setting
from launcher.auto_mode.prediction import Devices, Prediction, Rates, Workload, block_format, choose, predict_modes
from launcher.awake import AwakeClock
from launcher.processes import child_environment, python_command

H200, H200_BYTES = "NVIDIA H200", 139 * 2**30  # what `krea2 info --gpus` chooses for: its name, and its memory
_ASKED_S = 120.0  # seconds for the child: a first context on each of several GPUs


def is_auto(options: Mapping[str, Any]) -> bool:
    """Whether the mode is to be chosen. options: as they were given, by name. Raises `ArgumentError` if `parallel` is
    anything but auto, or if the mode is given, too."""
    if (parallel := options.get("parallel")) is None:
        return False
    if parallel != "auto":
        raise ArgumentError.of("parallel", "auto, or left out", parallel)
    for name in ("tp", "sp", "cfg_parallel"):
        value = options.get(name)
        if value is not None and value is not False:
            raise ArgumentError(f"parallel auto chooses {name}, which is given too: {value}", parameter=name)
    return True


def choose_mode(
    checkpoint: Weights, engine: EngineConfig, workload: Workload, *, ranks: int | None = None, gpus: int | None = None
) -> tuple[EngineConfig, list[str]]:
    """Choose the fastest mode for one image of the workload that fits into the devices.

    ranks: the number of them, where they have been started. gpus: the number of H200s to choose for, None for what
    this machine has. Returns the options in this mode, and lines that say why. Raises `ArgumentError` if nothing fits,
    and what `find_devices` does.
    """
    devices = Devices(H200, gpus, H200_BYTES) if gpus is not None else find_devices(engine, ranks)
    on_cpu = devices.memory is None
    engine_as_run = replace(engine, dtype=engine.dtype_on("cpu")) if on_cpu else engine
    rates = recall(setting(devices.name, checkpoint.config, block_format(checkpoint, engine_as_run)))
    predictions = predict_modes(checkpoint, engine_as_run, devices, workload, rates or Rates())
    chosen = choose(predictions, devices)
    lines = _describe(predictions, chosen, devices, workload, measured=rates is not None)
    degrees = chosen.degrees
    return replace(engine, tp=degrees.tp, sp=degrees.sp, cfg_parallel=degrees.cfg > 1), lines


def _describe(
    predictions: Sequence[Prediction], chosen: Prediction, devices: Devices, workload: Workload, *, measured: bool
) -> list[str]:
    """Write a line that says what was chosen, and a line for each mode."""
    sizes = ", ".join(f"{width} × {height}" for width, height in workload.sizes)
    images = f"{'a guided' if workload.guided else 'an'} image of {sizes}"
    if devices.memory is None:
        why = "ranks share a CPU's cores" if devices.ranks is None else f"{devices.ranks} processes have been started"
        return [f"parallel auto: {chosen.degrees.name}, since {why}"]
    by = "what was measured here" if measured else "the rates of an H200, nothing having been measured here"
    step = "a denoise step" if len(workload.sizes) == 1 else "a denoise step, the mean of the sizes"
    lines = [
        f"parallel auto: {chosen.degrees.name} on {devices.count} × {devices.name}, for {images}",
        f"  milliseconds of {step}, modelled by {by}:",
        f"  {'mode':<12}{'compute':>10}{'talk':>10}{'step':>10}{'a rank needs':>16}",
    ]
    for each in predictions:
        times = (each.compute_s, each.communication_s, each.step_s)
        note = "  ← chosen" if each is chosen else "  does not fit" if each.misfit is not None else ""
        columns = "".join(f"{1e3 * seconds:>10.2f}" for seconds in times)
        lines.append(f"  {each.degrees.name:<12}{columns}{each.needed / 1e9:>13.2f} GB{note}")
    return lines


def find_devices(engine: EngineConfig, ranks: int | None = None) -> Devices:
    """Find the devices that ranks can have: the first GPUs, as far as they are alike, or the CPU as one device.

    ranks: the number of them, where they have been started already. Raises `ArgumentError` when CUDA is asked for and
    missing, and `LaunchError` if the child fails.
    """
    gpus = _ask() if engine.device != "cpu" else ""
    if isinstance(gpus, str) and engine.device == "cuda":
        raise ArgumentError(f"device cuda is not available: {gpus}", parameter="device")
    if isinstance(gpus, str):
        return Devices("cpu", ranks or 1, ranks=ranks)
    return replace(gpus, count=max(gpus.count, ranks or 0), ranks=ranks)


def report_gpus() -> None:
    """Write `Devices` as json to stdout, in the child; without a GPU why there is none. memory: bytes free on the GPU
    with least."""
    import torch

    from engine.device.devices import why_no_gpu

    gpus: Devices | str
    count = torch.cuda.device_count()
    if count:
        name = torch.cuda.get_device_name(0)
        like = list(takewhile(lambda index: torch.cuda.get_device_name(index) == name, range(count)))
        gpus = Devices(name, len(like), min(torch.cuda.mem_get_info(index)[0] for index in like))
    else:
        gpus = why_no_gpu()
    sys.stdout.buffer.write(msgspec.json.encode(gpus))


def _ask() -> Devices | str:
    """Ask a child for the GPUs, or why there are none."""
    try:
        return msgspec.json.decode(_output_of(python_command("_devices")), type=Devices | str)
    except subprocess.TimeoutExpired:
        raise LaunchError(f"torch did not say within {_ASKED_S:g} s which GPUs there are") from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        raise LaunchError(f"torch cannot say which GPUs exist: {lines[-1] if lines else error.returncode}") from None
    except msgspec.DecodeError as error:
        raise LaunchError(f"torch cannot say which GPUs exist: {error}") from None


def _output_of(command: list[str]) -> bytes:
    """Run a command as `subprocess.run` does, for `_ASKED_S` seconds at most, but hear of a signal also where it comes
    just before a wait."""
    output: list[bytes] = []

    def has_ended(seconds: float) -> bool:
        with suppress(subprocess.TimeoutExpired):
            output.extend(child.communicate(timeout=seconds))
        return bool(output)

    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_environment(),
    ) as child:
        try:
            if not AwakeClock().wait(has_ended, _ASKED_S):
                raise subprocess.TimeoutExpired(command, _ASKED_S)
        except BaseException:
            child.kill()
            raise
    stdout, stderr = output
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command, stdout, stderr)
    return stdout
