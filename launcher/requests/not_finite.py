"""What to do about an image that came out as no numbers: by what its request asked for, most likely first."""

from __future__ import annotations

import os
from collections.abc import Iterable

from engine.config.demo_checkpoints import DEMO_LORAS
from engine.errors import NotFiniteError
from launcher.requests.check import CheckedRequest


def no_picture(seed: int, checked: CheckedRequest, merged: Iterable[tuple[str, float]]) -> NotFiniteError:
    """Make the error of an image of the request `checked`. merged: paths and strengths of LoRAs in the weights."""
    remedies = []
    own = {str(file): name for name, file in DEMO_LORAS.items()}
    files = [(own.get(path, os.path.basename(path)), strength) for path, strength in merged]  # without their folders
    for kind, loras in (("LoRA", checked.loras), ("merged LoRA", files)):
        if used := [f"{name!r} at {strength:g}" for name, strength in loras if strength]:
            less, plural = ("a smaller strength", "") if len(used) == 1 else ("smaller strengths", "s")
            remedies.append(f"{less} of the {kind}{plural} {' and '.join(used)}")
    if checked.guidance:
        remedies.append(f"less guidance than {checked.guidance:g}")
    if checked.mu is not None:
        remedies.append(f"another mu than {checked.mu:g}")
    if checked.sigmas is not None:
        remedies.append("other sigmas")
    advice = f"try {', or '.join(remedies)}" if remedies else "the checkpoint may be damaged"
    return NotFiniteError(f"the image with seed {seed} came out as no numbers: {advice}")
