"""Tells a client of its request what the engines say of its attempts: one request, each of whose images comes once."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from engine.errors import Krea2Error, ServerError, error_from_code
from launcher.messages.client_messages import Accepted, Closing, Failed, Generate, Image, Preview, Progress, Reply
from launcher.ray.replaying.history import Attempt, History, LostError
from launcher.ray.replaying.retelling import retold, with_time_before
from launcher.ray.replaying.unread import Told, Unread

_MOST_ATTEMPTS = 100  # of one engine, whatever its release


class Telling:
    """What the client of a request is told; what it has not read yet is in `unread`.

    progress: whether `Progress` is of use. has_ended: whether it has been told the end.
    """

    def __init__(self, request: Generate, history: History, progress: bool, clock: Callable[[], float]) -> None:
        self._request, self._history, self._progress, self._clock = request, history, progress, clock
        self.unread = Unread()
        self.has_ended = False
        self._attempt = 0  # as the client has heard it
        self._images: set[int] = set()  # that the client gets
        self._last: tuple[Image, bytes] | None = None  # one of them, which waits for where the time went
        self._came = clock()
        self._lost_s = self._sent_s = 0.0  # when the last death was heard of, and when this attempt was sent

    @property
    def is_complete(self) -> bool:
        """Whether all images have come."""
        return len(self._images) == self._request.num_images

    def attempt_begins(self) -> None:
        """Note that an attempt is sent now."""
        self._sent_s = self._clock() - self._came

    def attempt_dies(self) -> None:
        """Note that the work on the request was lost now, since an engine has died or could not check it."""
        self._lost_s = self._clock() - self._came

    def end(self, error: Krea2Error | None = None) -> None:
        """Tell the end: all that has come if those are all images, or else the error."""
        if self._last is not None:
            last, self._last = self._last, None
            self._put(*last)
        self.has_ended = True
        self.unread.end(None if self.is_complete else error)

    def hear(self, attempt: Attempt, reply: Reply, file: bytes) -> bool:
        """Take in what an engine says. Returns whether nothing is missing any more; raises the error that it says, and
        `LostError` for what it cannot have meant."""
        if getattr(reply, "request_id", None) not in (None, attempt.ticket):
            raise LostError("bad_reply", "it answered another request")
        self._check_sense(reply)
        match reply:
            case Failed():
                raise error_from_code(reply.code, reply.message, reply.parameter, reply.retry_after_s, reply.category)
            case Closing():
                raise ServerError(reply.message)
            case Image():
                return self._hear_image(attempt, reply, file)
            case Accepted():
                self._history.accepted()
                if attempt.hear(reply):
                    self._put(reply, file)
            case Progress():
                if attempt.hear(reply) and self._progress:
                    self._put(reply, file)
            case Preview():
                if attempt.hear(reply) and reply.index not in self._images:
                    self._put(reply, file)
        return False

    def _check_sense(self, reply: Reply) -> None:
        if isinstance(reply, (Accepted, Progress, Preview, Image)) and not 1 <= reply.attempt <= _MOST_ATTEMPTS:
            raise LostError("bad_reply", f"it said that this is its attempt {reply.attempt}")
        if isinstance(reply, (Preview, Image)) and not 0 <= reply.index < self._request.num_images:
            raise LostError("bad_reply", f"it sent image {reply.index}, from 0, of {self._request.num_images}")

    def _hear_image(self, attempt: Attempt, image: Image, file: bytes) -> bool:
        count = self._request.num_images
        if image.num_images != count or not file:
            told = f"{len(file)} bytes for one of {image.num_images} images, where {count} were asked for"
            raise LostError("bad_reply", f"it sent {told}")
        self._history.accepted()
        attempt.hear(image)
        attempt.images.add(image.index)
        has_all = len(attempt.images) == count
        if image.index not in self._images:
            self._images.add(image.index)
            if self.is_complete and self._request.explain and not has_all:
                self._last = image, file  # for an engine says where the time went with the last image of its own
            else:
                self._put(image, file)
        elif self._last is not None and has_all:
            last, its_file = self._last
            its = msgspec.structs.replace(last, explanation=image.explanation, timings=image.timings)
            self._last = its, its_file
        return self.is_complete and (self._last is None or has_all)

    def _put(self, reply: Told, file: bytes) -> None:
        history = self._history
        self._attempt = max(self._attempt, history.restarts + reply.attempt)
        if isinstance(reply, Image):
            self.unread.forget_previews(reply.index)
            if history.setbacks or history.moves:
                waited_s = self._sent_s - self._lost_s
                reply = with_time_before(reply, self._lost_s, waited_s, history.restarts, history.moves)
        self.unread.put(retold(reply, self._request.request_id, self._attempt), file)
