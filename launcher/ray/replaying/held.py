"""The pictures of requests, which are held for as long as another attempt may need them."""

from __future__ import annotations

from engine.errors import QueueFullError

_MOST_BYTES = 2**30  # of the pictures of all requests
_RETRY_AFTER_S = 5.0


class Holding:
    """What one process holds; `size` is how many bytes that is."""

    def __init__(self) -> None:
        self.size = 0

    def hold(self, files: list[bytes]) -> Held:
        """Hold the files of a request. Raises `QueueFullError` where those of others leave no room for them."""
        size = sum(map(len, files))
        if size and self.size + size > _MOST_BYTES:
            told = f"the pictures of other requests fill the {_MOST_BYTES / 2**30:g} GiB that there is for them"
            raise QueueFullError(f"{told}: try again later", parameter="image", retry_after_s=_RETRY_AFTER_S)
        self.size += size
        return Held(self, files)


class Held:
    """The files of a request that are held; none once they are forgotten."""

    def __init__(self, holding: Holding, files: list[bytes]) -> None:
        self._holding, self.files = holding, files

    def forget(self) -> None:
        """Hold them no more."""
        self._holding.size -= sum(map(len, self.files))
        self.files = []
