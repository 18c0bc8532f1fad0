"""What the files of each folder of the engine may import: see `tests/floors.py`."""

from __future__ import annotations

# The floors of the engine, the lowest first: what the files of a folder may import of the engine besides each other. A
# folder without a line here may import nothing of it.
_SIZES = {"engine.errors", "engine.config"}
ENGINE_FLOORS: dict[str, set[str]] = {
    "engine": set(),  # which version it is
    "engine.errors": set(),
    "engine.step_cache": set(),
    "engine.step": {"engine.step_cache"},
    "engine.sigmas": set(),
    "engine.config": {"engine.errors"},
    "engine.scheduling": {"engine.step", "engine.step_cache"},
    "engine.kernels": set(),
    "engine.kernels.attention": {"engine.errors", "engine.kernels"},
    "engine.device": {*_SIZES, "engine.kernels"},
    "engine.parallel": {"engine", *_SIZES, "engine.kernels", "engine.kernels.attention"},
    "engine.checkpoint.files": _SIZES,
    "engine.checkpoint.quantized": {*_SIZES, "engine.checkpoint.files"},
    "engine.checkpoint.layouts": {
        *_SIZES,
        "engine.kernels",
        "engine.checkpoint.files",
        "engine.checkpoint.quantized",
    },
    "engine.checkpoint": {
        *_SIZES,
        "engine.kernels",
        "engine.parallel",
        "engine.checkpoint.files",
        "engine.checkpoint.layouts",
    },
    "engine.checkpoint.convert": {
        *_SIZES,
        "engine.kernels",
        "engine.checkpoint",
        "engine.checkpoint.files",
        "engine.checkpoint.layouts",
        "engine.checkpoint.quantized",
    },
    "engine.model": {*_SIZES, "engine.device", "engine.kernels", "engine.kernels.attention", "engine.parallel"},
    "engine.step_cache.blocks": {"engine.step_cache", "engine.parallel", "engine.model"},
    "engine.lora": {
        *_SIZES,
        "engine.sigmas",
        "engine.step",
        "engine.kernels",
        "engine.parallel",
        "engine.checkpoint",
        "engine.checkpoint.files",
        "engine.checkpoint.layouts",
    },
    "engine.planning": {*_SIZES, "engine.step_cache", "engine.checkpoint", "engine.model"},
    "engine.offload": {
        *_SIZES,
        "engine.device",
        "engine.checkpoint",
        "engine.model",
        "engine.planning",
    },
    "engine.pictures": {
        *_SIZES,
        "engine.step",
        "engine.device",
        "engine.parallel",
        "engine.model",
        "engine.planning",
        "engine.offload",
    },
    "engine.rank": {
        *_SIZES,
        "engine.step_cache.blocks",
        "engine.pictures",
        "engine.step",
        "engine.step_cache",
        "engine.device",
        "engine.kernels",
        "engine.kernels.attention",
        "engine.parallel",
        "engine.checkpoint",
        "engine.lora",
        "engine.model",
        "engine.planning",
        "engine.offload",
    },
}
