"""What was asked of an image's steps and what was computed of them, as image files and people are told it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from engine.step_cache.settings import PRESETS, StepCache
from engine.step_cache.step_plan import WHOLE
from launcher.messages.message_parts import Computed
from launcher.requests.schedule.saved_steps import OF_BLOCKS

HALVES = ("prompt", "negative_prompt")


def saved_settings(cache: StepCache | None, window: tuple[float, float], outside: str) -> dict[str, Any]:
    """Give the parameters with which a request asks for these settings; none where it asks for nothing."""
    settings: dict[str, Any] = {} if cache is None else {"cache": describe_cache(cache)}
    if window != WHOLE:
        settings |= {"guidance_from": window[0], "guidance_until": window[1], "guidance_outside": outside}
    return settings


def describe_cache(cache: StepCache) -> str | dict[str, Any]:
    """Say what would have to be asked for to have these settings: a name, or fields."""
    for name, preset in PRESETS.items():
        if cache == preset:
            return name
    fields = asdict(cache)
    return fields if cache.method == "blocks" else {name: fields[name] for name in fields if name not in OF_BLOCKS}


def describe_computed(computed: Computed) -> dict[str, str]:
    """Say which steps of each half were computed as a whole, as `1-9,12,15`, and how many blocks were run in all."""
    halves = zip(HALVES, zip(*computed.steps, strict=True), strict=False)
    told = {half: ",".join(_ranges(blocks, computed.blocks)) for half, blocks in halves}
    return {**told, "block_evaluations": f"{computed.block_evaluations} of {computed.of}"}


def describe_evaluations(images: Sequence[Computed]) -> str:
    """Say in a line how many blocks were run for these images, of how many, and of one image in which steps."""
    run, of = sum(each.block_evaluations for each in images), sum(each.of for each in images)
    told = f"{run} of {of} block evaluations, {100 * (1 - run / of) if of else 0:.0f} % saved"
    if len(images) > 1:
        return told
    halves = describe_computed(images[0])
    negative = halves.get("negative_prompt")
    guided = "" if negative is None else f"; of the negative prompt {negative or 'none'}"
    return f"{told}; computed steps: {halves['prompt']}{guided}"


def _ranges(blocks_run: tuple[int, ...], blocks: int) -> Iterator[str]:
    """Name the steps, from 1, that ran all blocks, neighbours as one range."""
    for is_whole, steps in groupby(enumerate(blocks_run, 1), key=lambda step: step[1] == blocks):
        numbers = [number for number, _ in steps]
        if is_whole:
            yield str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
