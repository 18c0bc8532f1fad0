"""Chooses the mode for `--parallel auto`, and says why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.checkpoint.weight_format import Weights
from engine.config.engine_config import EngineConfig
from engine.errors import ArgumentError
from launcher.auto_mode.devices import find_devices
from launcher.auto_mode.measurements import recall, setting
from launcher.auto_mode.prediction import Devices, Prediction, Rates, Workload, block_format, choose, predict_modes

H200, H200_BYTES = "NVIDIA H200", 139 * 2**30  # what `krea2 info --gpus` chooses for: its name, and its memory


@dataclass(frozen=True)
class Choice:
    """The configuration in the mode that was chosen, and lines that say why."""

    engine: EngineConfig
    lines: tuple[str, ...]


def is_auto(options: Mapping[str, Any]) -> bool:
    """Whether the mode is to be chosen. options: as they were given, by name. Raises `ArgumentError` if the mode is
    given, too."""
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
) -> Choice:
    """Choose the fastest mode for one image of the workload that fits into the devices.

    ranks: the number to use, where so many have been started. gpus: the number of H200s to choose for, None for what
    this machine has. Raises `ArgumentError` if nothing fits.
    """
    devices = Devices(H200, gpus, H200_BYTES) if gpus is not None else find_devices(engine, ranks)
    on_cpu = devices.memory is None
    engine_as_run = replace(engine, dtype=engine.dtype_on("cpu")) if on_cpu else engine
    rates = recall(setting(devices.name, checkpoint.config, block_format(checkpoint, engine_as_run)))
    predictions = predict_modes(checkpoint, engine_as_run, devices, workload, rates or Rates())
    chosen = choose(predictions, devices)
    degrees = chosen.degrees
    return Choice(
        replace(engine, tp=degrees.tp, sp=degrees.sp, cfg_parallel=degrees.cfg > 1),
        tuple(describe(predictions, chosen, devices, workload, measured=rates is not None)),
    )


def describe(
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
        mark = "  ← chosen" if each is chosen else "  does not fit" if each.misfit is not None else ""
        columns = "".join(f"{1e3 * seconds:>10.2f}" for seconds in times)
        lines.append(f"  {each.degrees.name:<12}{columns}{each.needed / 1e9:>13.2f} GB{mark}")
    return lines
