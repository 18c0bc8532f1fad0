"""How much of the blocks is run in steps that may be cached: what their images decide, learned from those before. Plain
Python: no torch, no clock."""

from __future__ import annotations

from collections import OrderedDict

from engine.step_cache.settings import StepCache

_MOST = 256  # settings that are remembered, the latest used
_GAIN = 0.2  # of an image, once five have counted alike


class Share:
    """The share of all blocks that a half runs, on average, in the steps of an image that may be cached. value: as it
    is assumed until an image has told."""

    __slots__ = ("_images", "value")

    def __init__(self, assumed: float) -> None:
        self.value, self._images = assumed, 0

    def learn(self, share: float) -> None:
        """Take in what an image has run: the first few count alike, then the latest count most."""
        self._images += 1
        self.value += max(_GAIN, 1 / self._images) * (min(1.0, max(0.0, share)) - self.value)


class Shares:
    """Keeps a `Share` for each setting and number of steps. blocks: of the model."""

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._known: OrderedDict[tuple[StepCache, int], Share] = OrderedDict()

    def of(self, cache: StepCache, steps: int, may_be_cached: int) -> Share:
        """Return that of images of so many steps, of which `may_be_cached` may be. Nobody knows it before one was made:
        then it is taken to be halfway between all blocks and the fewest that the setting allows."""
        known = self._known.setdefault((cache, steps), Share((1 + self._least(cache, may_be_cached)) / 2))
        self._known.move_to_end((cache, steps))
        if len(self._known) > _MOST:
            self._known.popitem(last=False)
        return known

    def _least(self, cache: StepCache, may_be_cached: int) -> float:
        computed = may_be_cached // (cache.max_consecutive + 1)  # after as many in a row as may be
        cached = min(may_be_cached - computed, cache.max_cached)
        saved = 1 - min(self._blocks, cache.first_blocks + cache.last_blocks) / self._blocks
        return 1 - saved * cached / max(1, may_be_cached)
