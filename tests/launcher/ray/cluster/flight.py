"""Eight requests in flight at once, some of them streams, which must all be answered with the right pictures."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.launcher.http_servers import PATH
from tests.launcher.processes import PATIENCE_S
from tests.launcher.ray.both.sent import events, images, pixels
from tests.launcher.ray.servers import Served

STEPS = 120
_PLACES = [
    ("a red circle on a blue background", {}),
    ("a green square on a white background", {"n": 2}),
    ("a yellow triangle on a black background", {"stream": True}),
    ("a red circle on a white background", {"stream": True, "n": 2}),
    ("a blue circle on a yellow background", {}),
    ("a purple square on a white background", {"stream": True, "partial_images": 2}),
    ("an orange circle on a black background", {"loras": ["ink"]}),
    ("a black triangle on a red background", {"stream": True}),
]
REQUESTS: list[dict[str, Any]] = [
    {"prompt": prompt, "seed": seed, "steps": STEPS, "size": "96x96"}
    | ({"progress": True} if "stream" in more else {})
    | more
    for seed, (prompt, more) in enumerate(_PLACES)
]


@dataclass
class Flight:
    """What becomes of the requests. begun: set when the first step of a stream is done."""

    server: Served
    requests: list[dict[str, Any]] = field(default_factory=lambda: REQUESTS)
    begun: threading.Event = field(default_factory=threading.Event)
    attempts: list[int] = field(default_factory=list)
    answered: int = 0

    def run(self, disturb: Callable[[], None] = lambda: None) -> list[list[np.ndarray]]:
        """Send all at once, and `disturb` when one was begun. Returns the pictures of each."""
        with ThreadPoolExecutor(len(self.requests)) as pool:
            sent = [pool.submit(self._send, request) for request in self.requests]
            assert self.begun.wait(PATIENCE_S), "nothing was begun"
            disturb()
            return [each.result(PATIENCE_S) for each in sent]

    def _send(self, request: dict[str, Any]) -> list[np.ndarray]:
        found = self._stream(request) if request.get("stream") else images(self.server.post(PATH, request))
        assert len(found) == request.get("n", 1)
        self.answered += 1
        return found

    def _stream(self, request: dict[str, Any]) -> list[np.ndarray]:
        text = ""
        with self.server.client() as client, client.stream("POST", PATH, json=request) as answer:
            for part in answer.iter_text():
                text += part
                if "image_generation.progress" in text:
                    self.begun.set()
        assert answer.status_code == 200, text
        found = events(text)
        steps = [data["attempt"] for name, data in found if "attempt" in data]
        assert steps == sorted(steps), "an attempt of before came later"
        self.attempts += steps[-1:]
        assert not [data for name, data in found if name == "error"], text[-1000:]
        completed = [data for name, data in found if name == "image_generation.completed"]
        indices = [data["index"] for data in completed]
        assert sorted(indices) == [*range(request.get("n", 1))], "a picture came twice, or not at all"
        return [pixels(data["b64_json"]) for data in sorted(completed, key=lambda data: int(data["index"]))]


def difference(found: list[list[np.ndarray]], expected: list[list[np.ndarray]]) -> int:
    """The largest difference of two of the same pictures, in a colour of a pixel: of 255."""
    pairs = [(a, b) for one, other in zip(found, expected, strict=True) for a, b in zip(one, other, strict=True)]
    return max(int(np.abs(a.astype(int) - b).max()) for a, b in pairs)
