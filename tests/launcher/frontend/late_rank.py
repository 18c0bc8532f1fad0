"""A fake rank of which the last step is not known when its image comes."""

from __future__ import annotations

from engine.step import Step
from tests.launcher.fake_ranks import FakeRank


class LateRank(FakeRank):
    """Rank 1 says only when it is told to that it has done the last step; rank 0 has sent the image by then."""

    def _answer(self, step: Step) -> None:
        if self.rank == 1 and step.decode:
            self.hold = True
        else:
            super()._answer(step)

    def answer_late(self, step: Step) -> None:
        """Say now that this step is done."""
        super()._answer(step)
