"""Keeps what warm-ups measured on this machine for the next choice of a mode: a json file in the user's cache."""

from __future__ import annotations

from typing import Annotated

import msgspec

from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.scheduling.cost import CostModel, Work
from launcher.auto_mode.prediction import TEXT_TOKENS, Rates, StepModel
from launcher.kept import read_kept, write_kept
from launcher.logs import log_event
from launcher.messages.configs import FrontendConfig
from launcher.messages.rank_messages import Ready

_NAME = "measured"
_Positive = Annotated[float, msgspec.Meta(gt=0, le=1e15)]


class Measured(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was measured of `Rates`, in its units. link and latency_s are None where only one rank has run."""

    slowness: _Positive
    link: _Positive | None = None
    latency_s: _Positive | None = None

    def rates(self) -> Rates:
        """Return an H200's rates with the measured ones in their place; one bandwidth is both `link` and `exchange`."""
        if self.link is None or self.latency_s is None:
            return Rates(slowness=self.slowness)
        return Rates(slowness=self.slowness, link=self.link, exchange=self.link, latency_s=self.latency_s)


def keep_speed(config: FrontendConfig, model: ModelConfig, costs: CostModel, ready: Ready) -> None:
    """Log what a warm-up has measured and keep it for the next `--parallel auto` in its `setting`: an `AfterWarmUp`."""
    engine = config.engine
    if not ready.device.startswith("cuda") or not is_typical(config):
        return
    if (found := measure(model, engine, costs, ready.link, fp8=config.block_format == "fp8")) is None:
        return
    measured, step_s, predicted_s = found
    log_event(
        "denoise step measured",
        mode=engine.degrees.name,
        step_ms=round(1e3 * step_s, 2),
        predicted_ms=round(1e3 * predicted_s, 2),
        link_gb_per_s=None if measured.link is None else round(measured.link / 1e9, 1),
        latency_us=None if measured.latency_s is None else round(1e6 * measured.latency_s, 1),
    )
    try:
        remember(setting(ready.device_name, model, config.block_format), measured)
    except OSError as error:
        log_event("what was measured cannot be kept", level="warning", error=str(error))


def setting(device: str, model: ModelConfig, block_format: str) -> str:
    """Make the key of measurements: the device, the model's size, the format of its blocks' matrices."""
    dit = model.transformer
    return f"{device}, {dit.num_layers} blocks of {dit.hidden_size}, {block_format}"


def is_typical(config: FrontendConfig) -> bool:
    """Whether a run's times hold for other runs: in bfloat16, without options that slow it down, on one machine."""
    engine = config.engine
    slowed = engine.share_gpu or engine.offload or engine.memory_budget is not None or engine.attention != "auto"
    return not slowed and config.ranks_host is None and engine.dtype_on("cuda") == "bfloat16"


def recall(key: str) -> Rates | None:
    """Look up the rates in a setting; None if nothing was measured, or the file cannot be read."""
    found = read_kept(_NAME, Measured).get(key)
    return None if found is None else found.rates()


def remember(key: str, measured: Measured) -> None:
    """Keep it under a `setting`, with the link measured before if none was now. Raises `OSError` if it cannot write."""
    everything = read_kept(_NAME, Measured)
    before = everything.get(key)
    if before is not None and measured.link is None:
        measured = msgspec.structs.replace(measured, link=before.link, latency_s=before.latency_s)
    write_kept(_NAME, everything | {key: measured})


def measure(
    model: ModelConfig, engine: EngineConfig, costs: CostModel, link: tuple[float, float] | None, *, fp8: bool
) -> tuple[Measured, float, float] | None:
    """Compare a step in a warm-up, of one image of the default size, with what an H200 would take.

    link: bandwidth in bytes a second and latency in seconds. The image is guided if the mode divides guidance. Returns
    what is to be kept, the step's seconds, and those predicted with the link that was measured; None if no such step
    was measured.
    """
    segments = [(TEXT_TOKENS, model.image_tokens(model.default_width, model.default_height))]
    segments *= 1 + model.divides_guidance(engine.degrees)
    step_s = costs.denoise_s(Work.of(map(sum, segments)))
    if step_s is None:
        return None
    measured = Measured(slowness=1.0, link=link and link[0], latency_s=link and link[1])
    steps = StepModel(model.transformer, measured.rates(), fp8=fp8)
    compute_s, communication_s = steps.predict(segments, engine.degrees)
    computed_s = max(step_s - communication_s, 0.1 * step_s)  # where ranks communicated for less time than predicted
    return msgspec.structs.replace(measured, slowness=computed_s / compute_s), step_s, compute_s + communication_s
