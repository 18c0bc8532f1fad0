"""A classifier in the process of a filter, behind the gate of a server."""

from __future__ import annotations

import asyncio

import pytest

from engine.errors import LaunchError
from launcher.awake import AwakeLoop
from launcher.filters.built_in.classifier import make
from launcher.filters.gate import Gate
from launcher.filters.spec import read_specs
from tests.launcher.filters.built_in.classifier.folders import Folder, picture


@pytest.mark.slow  # each process imports torch and transformers
def test_pictures_are_blocked_by_a_classifier_in_its_process_and_one_of_which_nothing_counts_does_not_start(
    folder: Folder,
) -> None:
    path = folder("vit", "cats", "dogs")
    pictures = [picture(320, 240, seed) for seed in range(6)]
    scores = [each["cats"] for each in make(str(path), {}).check_images(pictures)]
    least = sorted(scores)[3]

    async def check() -> list[str]:
        gate = Gate(read_specs([f"classifier:{path},block=cats:{least - 1e-4},threads=1"]), fail_open=False)
        await gate.start()
        try:
            return [judged.action for judged in await asyncio.gather(*map(gate.check_image, pictures))]
        finally:
            gate.close()

    with asyncio.Runner(loop_factory=AwakeLoop) as runner:
        assert runner.run(check()) == ["block" if score >= least else "allow" for score in scores]
        told = r"filter classifier cannot be started: none of its categories \(cats, dogs\) is known to be harmful"
        with pytest.raises(LaunchError, match=told):
            runner.run(Gate(read_specs([f"classifier:{path}"]), fail_open=False).start())
