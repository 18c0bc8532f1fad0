"""How many denoise steps an image gets that begins from a picture. Plain Python: no torch."""

from __future__ import annotations

from typing import NamedTuple

STRENGTH_STEPS = ("partial", "full")
MOST_SCHEDULE_STEPS = 10_000  # of which the last are run
_ENDLESS = 2.0**53  # steps


class StrengthSteps(NamedTuple):
    """The denoise steps that are `run`, and the `skipped` ones of the schedule before them."""

    run: int
    skipped: int


def steps_of(steps: int, strength: float, rule: str) -> StrengthSteps:
    """Divide a schedule by the strength, from 0, which leaves the picture as it is, to 1, which leaves nothing of it.

    partial: of `steps` the last part is run, as diffusers' img2img pipelines have it. full: all `steps` are run, which
    are the last ones of a schedule of more, as ComfyUI's samplers have it. 0 runs none by either.
    """
    if strength == 0:
        return StrengthSteps(0, steps)
    if rule == "full":
        whole = min(steps / strength, _ENDLESS)  # of the least floats that would be infinite
        return StrengthSteps(steps, int(whole) - steps)
    skipped = int(steps - min(steps * strength, steps))
    return StrengthSteps(steps - skipped, skipped)
