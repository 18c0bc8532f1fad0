"""What a client still waits to hear of its requests."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass, field

from engine.errors import Krea2Error, error_from_code
from launcher.messages.client_messages import Accepted, Failed, Image, Preview, Progress

News = Accepted | Progress | tuple[Image | Preview, bytes] | Krea2Error


@dataclass
class Call:
    """A request that is under way, and the news of it that nobody has taken yet, only the newest of each kind."""

    frame: bytes
    last_heard: float
    _news: dict[Hashable, News] = field(default_factory=dict)
    _has_news: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, kind: Hashable, news: News) -> None:
        self._news[kind] = news
        self._has_news.set()

    async def next_news(self) -> News:
        await self._has_news.wait()
        news = self._news.pop(next(iter(self._news)))
        if not self._news:
            self._has_news.clear()
        return news


def error_of(failed: Failed) -> Krea2Error:
    return error_from_code(failed.code, failed.message, failed.parameter, failed.retry_after_s)
