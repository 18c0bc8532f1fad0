"""When an attention library that needs a plan for every new length may build one: while nobody waits for an image.

Pure: it knows neither torch nor a clock. Shapes are whatever identifies a plan; times are seconds and passed in.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable

IDLE_S = 1.0  # without an image to make, before a plan is built
MOST_WAITING = 0.02  # share of images that may have come while a plan was being built
MOST_PLANS = 256
MOST_BYTES = 1 << 30  # that plans were seen to take, after which none is built
_FIRST_IMAGES = 1000  # fewer images count as this many, since plans pay the longer the earlier they are there
# An image that starts within this time after a plan was built came before it was: a rank takes as long to read an order
# that waits. One in some fifty that it had nothing to do with is counted too.
_WAITED_S = 0.05
_MOST_SHAPES = 4096  # remembered without a plan
_MOST_FAILURES = 3  # in a row, after which nothing more is tried


class PlanSchedule:
    """Counts the shapes that are met and have a plan, and says what to build and when.

    The shape that cost most so far goes first. A plan is built only after `IDLE_S` without an image, and only while the
    images that came during builds, and as many as ever came during one, stay within `MOST_WAITING` of all. That holds
    whatever the load, but for the images beyond these, and beyond two, that come during one build.
    """

    def __init__(self) -> None:
        self._work: Counter[Hashable] = Counter()  # of shapes without a plan
        self._planned: set[Hashable] = set()
        self._failed: set[Hashable] = set()
        self._failures = 0  # in a row
        self._idle_since = -math.inf
        self._built_at = -math.inf
        self._at_once = 0  # images that the last build made wait
        self._most_at_once = 2  # images that one build made wait: seldom more than two
        self.bytes = 0
        self.images = 0
        self.waited = 0  # images

    @property
    def plans(self) -> int:
        """The number of plans."""
        return len(self._planned)

    def has(self, shape: Hashable) -> bool:
        """Says whether there is a plan for it."""
        return shape in self._planned

    def met(self, shape: Hashable, work: float = 1.0) -> None:
        """Counts a shape without a plan. work: what it costs without one, in any unit."""
        if shape in self._failed:
            return
        self._work[shape] += work  # type: ignore[assignment]
        if len(self._work) > _MOST_SHAPES:
            self._work = Counter(dict(self._work.most_common(_MOST_SHAPES // 2)))

    def worked(self, now: float, images: int = 0) -> None:
        """Notes that there was work at this time, which began this number of images."""
        self._idle_since = now
        self.images += images
        if now - self._built_at <= _WAITED_S:
            self.waited += images
            self._at_once += images
            self._most_at_once = max(self._most_at_once, self._at_once)

    def wait_s(self, now: float) -> float | None:
        """Returns the seconds until the next plan may be built if no work comes; None if there is none to build."""
        if not self._work or self._failures >= _MOST_FAILURES:
            return None
        if len(self._planned) >= MOST_PLANS or self.bytes >= MOST_BYTES:
            return None
        if self.waited + self._most_at_once > MOST_WAITING * max(self.images, _FIRST_IMAGES):
            return None
        return max(0.0, self._idle_since + IDLE_S - now)

    def next(self) -> Hashable | None:
        """Returns the shape that a plan would save most for; None if all have one."""
        return max(self._work, key=self._work.__getitem__) if self._work else None

    def built(self, shape: Hashable, now: float | None, size: int = 0) -> None:
        """Notes a plan of `size` bytes that was built by `now`. None: no image can have waited for it."""
        self._ended(shape, now)
        self._planned.add(shape)
        self._failures = 0
        self.bytes += max(0, size)

    def failed(self, shape: Hashable, now: float | None) -> None:
        """Notes that there will be no plan for it, which was known by `now`, as in `built`."""
        self._ended(shape, now)
        self._failed.add(shape)
        self._failures += 1

    def _ended(self, shape: Hashable, now: float | None) -> None:
        del self._work[shape]
        self._built_at = -math.inf if now is None else now
        self._at_once = 0

    def describe(self) -> str:
        """Says for people how many plans there are and what they took."""
        size = f"{self.plans} plans of {self.bytes / 1e6:.0f} MB"
        failed = f", {len(self._failed)} failed" if self._failed else ""
        return f"{size}{failed}; {self.waited} of {self.images} images waited for one"
