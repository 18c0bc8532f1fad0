"""What block evaluations would take on an H200, from what one was measured to take with all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent.parent / "results"
GPU, SIDE = "H200", 1024
BLOCKS, RAW_STEPS, TURBO_STEPS = 28, 52, 8  # of Krea 2


@dataclass(frozen=True)
class Measured:
    """Seconds of an image of 1024² in bfloat16: of a forward of one half, and of all that is not denoising; commit: of
    the engine that was measured."""

    forward_s: float
    other_s: float
    commit: str

    def image_s(self, block_evaluations: float) -> float:
        """Reckon an image's seconds. All of a forward counts as its blocks', whose decisions take no time."""
        return self.other_s + block_evaluations / BLOCKS * self.forward_s


def measured_h200(folder: Path = RESULTS) -> Measured | None:
    """Read what the newest files of results say; None if none has a step and an image of one half."""
    lines = [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]
    fitting = [line for line in lines if _fits(line)]
    steps = [line for line in fitting if line["benchmark"] == "step" and line["images"] == 1]
    images = [line for line in fitting if line["benchmark"] == "image"]
    if not steps or not images:
        return None
    stages = images[-1]["stages"]
    forward_s = float(steps[-1]["engine"]["step_s"]["median"])
    return Measured(forward_s, float(stages["wall_s"] - stages["denoise_s"]), str(steps[-1]["commit"]))


def _fits(line: Mapping[str, Any]) -> bool:
    wanted = {"size": "real", "layers": BLOCKS, "side": SIDE, "dtype": "bfloat16", "quantization": "none"}
    on = str(line.get("hardware", {}).get("gpu"))
    return GPU in on and not line.get("gpu_shared") and all(line.get(name) == value for name, value in wanted.items())
