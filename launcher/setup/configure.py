"""What is settled before an engine starts: a configuration of the front-end, checked as far as that goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError
from launcher.auto_mode.choice import choose_mode
from launcher.auto_mode.prediction import Workload, block_form
from launcher.messages.configs import FrontendConfig
from launcher.messages.limits import Limits, is_number
from launcher.setup.hub import find_model

MAX_TIMEOUT_S = 7 * 86_400


def configure(
    engine: EngineConfig, limits: Mapping[str, float], *, start_timeout_s: float, step_timeout_s: float
) -> tuple[FrontendConfig, ModelConfig]:
    """Check everything that can be checked without starting anything, after downloading a model that is named only by
    its Hugging Face repository. Raises `ArgumentError` or `CheckpointError`."""
    engine = replace(engine, model=find_model(engine.model))
    checkpoint = CheckpointFiles.open(engine)
    form = block_form(checkpoint, engine)
    checkpoint.close()
    model = checkpoint.config
    model.check_parallel(engine.tp, engine.sp)
    for name, seconds in (("start_timeout_s", start_timeout_s), ("step_timeout_s", step_timeout_s)):
        if not is_number(seconds) or not 0 < seconds <= MAX_TIMEOUT_S:
            raise ArgumentError.of(name, f"above 0 and at most {MAX_TIMEOUT_S}", seconds)
    config = FrontendConfig(
        engine=engine,
        limits=Limits.of(limits),
        start_timeout_s=start_timeout_s,
        step_timeout_s=step_timeout_s,
        block_form=form,
    )
    return config, model


def choose_parallel(
    config: FrontendConfig, workload: Workload, *, ranks: int | None = None
) -> tuple[FrontendConfig, tuple[str, ...]]:
    """In the fastest mode for the workload, with the reasons; ranks: if so many have been started. Raises as
    `choose_mode`."""
    choice = choose_mode(config.engine, workload, ranks=ranks)
    return msgspec.structs.replace(config, engine=choice.engine), choice.lines


def add_loras(
    config: FrontendConfig, model: ModelConfig, loras: Sequence[str], *, lora_dir: str | None, merge: bool
) -> tuple[FrontendConfig, tuple[str, ...]]:
    """See `lora_files.with_loras`, which is not imported for nothing."""
    if not loras and not merge and lora_dir is None:
        return config, ()
    from launcher.requests.lora_files import with_loras

    return with_loras(config, model, loras, lora_dir=lora_dir, merge=merge)
