"""Every error a user can meet.

`code` is what travels over RPC and HTTP, `exit_code` what the command line ends with, `parameter` the name of the
argument at fault, if there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

_LONGEST_VALUE = 80  # characters of what was given, in an error
_LONGEST_NAME = 200  # of a tensor or key, in an error; real ones have less than a hundred characters


class Krea2Error(Exception):
    """Base of all errors that are shown to a user as one line, without a traceback.

    retry_after_s: seconds until the same may work, where that is known.
    """

    code = "internal_error"
    exit_code = 1

    def __init_subclass__(cls, *, code: str, exit_code: int = 1) -> None:
        cls.code, cls.exit_code = code, exit_code

    def __init__(self, message: str, *, parameter: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.parameter = parameter
        self.retry_after_s = retry_after_s


class ArgumentError(Krea2Error, code="invalid_parameter", exit_code=2):
    """A parameter of a request or an engine flag has a value that is not allowed."""

    @classmethod
    def of(cls, parameter: str, allowed: str, value: object) -> ArgumentError:
        """Name parameter, what is allowed, and the value: `of("width", "between 64 and 4096", 100000)`."""
        shown = repr(shortened(value, _LONGEST_VALUE - 2)) if isinstance(value, str) else str(value)
        return cls(f"{parameter} must be {allowed}, got {shortened(shown, _LONGEST_VALUE)}", parameter=parameter)


class CheckpointError(Krea2Error, code="bad_checkpoint", exit_code=2):
    """A file of the checkpoint is missing, damaged, or not what its config says. Names file, tensor or key."""

    @classmethod
    def of(
        cls, file: str | Path, problem: str, *, name: str | None = None, expected: object = None, found: object = None
    ) -> CheckpointError:
        """Name file, tensor or key, and what was expected and found: `of(file, "is missing", name="norm.weight")`."""
        message = f"{file}: {shortened(name, _LONGEST_NAME)}: {problem}" if name else f"{file}: {problem}"
        if expected is not None:
            message += f", expected {expected}"
        if found is not None:
            message += f", found {found}"
        return cls(printable(message))


def shortened(text: str, most: int) -> str:
    """Cut a text of more than `most` characters in its middle, nearer to its beginning: a path ends in a file's
    name."""
    if len(text) <= most:
        return text
    first = most // 3
    return f"{text[:first]}…{text[len(text) - (most - first - 1) :]}"


def printable(text: str, *, escape: Callable[[str], str] = lambda char: ascii(char)[1:-1]) -> str:
    """Escape what names in a file, and whatever else others have written, may do to a terminal or a log: line breaks,
    escape codes and other control characters (C0, C1), what turns the direction of text, lone surrogates.

    escape: how, by default as Python does in a string.
    """
    return text if text.isprintable() else "".join(char if char.isprintable() else escape(char) for char in text)


class LoraError(Krea2Error, code="bad_lora", exit_code=2):
    """A LoRA file is damaged, is for another model, or has tensors that fit nothing here. Names file and tensor."""


class LaunchError(Krea2Error, code="launch_failed"):
    """The engine could not be started here: no such device, a port in use, a start that took too long."""


class RankError(Krea2Error, code="rank_failed"):
    """A rank died, hung or raised; the message carries the rank's own error."""


class RequestKilledRanksError(Krea2Error, code="request_killed_ranks"):
    """The request was in flight each time that ranks died, the last time alone."""


class NotFiniteError(Krea2Error, code="image_not_finite"):
    """The latents of an image are not finite numbers, so there is no picture in them."""


class OutOfMemoryError(Krea2Error, code="out_of_memory"):
    """The device ran out of memory over an image that it had to itself; the engine goes on."""


class ModerationBlockedError(Krea2Error, code="moderation_blocked"):
    """A content filter has blocked the prompt, a picture of the request, or the image.

    category: of what was found, in the filter's words.
    """

    def __init__(
        self,
        message: str,
        *,
        parameter: str | None = None,
        retry_after_s: float | None = None,
        category: str | None = None,
    ) -> None:
        super().__init__(message, parameter=parameter, retry_after_s=retry_after_s)
        self.category = category


class FilterUnavailableError(Krea2Error, code="filter_unavailable"):
    """A content filter did not answer in time, or not as it must, so that nothing that it has not seen is let out."""


class QueueFullError(Krea2Error, code="queue_full"):
    """The queue holds as many requests as it may; come back later."""


class RateLimitedError(Krea2Error, code="rate_limited"):
    """The key that a request was sent with has what it may have for now; come back later."""


class ConflictError(Krea2Error, code="conflict"):
    """What is asked for is not done by a server such as this one, however it is asked; the message says what to do
    instead."""


class IdempotencyConflictError(Krea2Error, code="idempotency_conflict"):
    """The idempotency key of a request is that of another request, with other parameters."""


class RequestTimeoutError(Krea2Error, code="timeout"):
    """The request's own deadline (`timeout_s`) passed."""

    @classmethod
    def of(cls, timeout_s: float) -> RequestTimeoutError:
        """Name the seconds that the request had."""
        return cls(f"the request was not done within its timeout_s of {timeout_s:g}")


class CancelledError(Krea2Error, code="cancelled"):
    """The request was cancelled, by its client or because the client went away."""


class ServerError(Krea2Error, code="server_unavailable"):
    """The server does not answer, is shutting down, or speaks another protocol version."""


def error_from_code(
    code: str,
    message: str,
    parameter: str | None = None,
    retry_after_s: float | None = None,
    category: str | None = None,
) -> Krea2Error:
    """Make the error that a `failed` reply stands for, as the client raises it. category: of what was blocked."""
    kind = next((kind for kind in Krea2Error.__subclasses__() if kind.code == code), Krea2Error)
    error = kind(message, parameter=parameter, retry_after_s=retry_after_s)
    error.code = code
    if isinstance(error, ModerationBlockedError):
        error.category = category
    return error
