"""Asks a service by HTTP: JSON there and back, within a deadline, and no answer that is too large is read.

Nothing that is sent or answered is in the errors, since prompts have no place in logs, and neither is the key.
"""

from __future__ import annotations

import json
import re
import ssl
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from socket import SHUT_RDWR, socket
from time import monotonic
from typing import Any

from engine.config.bounded_json import JsonLimits, read_json
from launcher.filters.protocol import Unavailable
from launcher.filters.urls.address import Address

MOST_BYTES = 1 << 20  # of an answer
_LIMITS = JsonLimits(values=20_000, depth=32, key=256, string=1 << 19)
_TRIES = 3  # of a question that the service may answer in a moment
_PASSING = {408, 425, 429, 500, 502, 503, 504, 529}  # statuses of such a moment
_WRONG = {401, 403, 404, 405, 410, 501}
_LONGEST_PAUSE_S = 60.0
_REASON = re.compile(r"[A-Za-z][\w.-]{0,59}")


class WrongServiceError(Unavailable):
    """A service is not what its URL and the options say, or does not take the key: to ask again does not help."""


class _PassingError(Unavailable):
    """It may answer in a moment. after_s: when it says so."""

    def __init__(self, message: str, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


class _Questions:
    """Those that are asked together, whose connections are shut when their time is over, whatever they wait for."""

    def __init__(self, timeout_s: float) -> None:
        self.deadline = monotonic() + timeout_s
        self.ended = threading.Event()
        self._connections: set[HTTPConnection] = set()
        self._lock = threading.Lock()

    @property
    def left_s(self) -> float:
        return max(self.deadline - monotonic(), 0.001)

    def begin(self, connection: HTTPConnection) -> None:
        with self._lock:
            if self.ended.is_set():
                raise Unavailable("the time is over")
            self._connections.add(connection)

    def finish(self, connection: HTTPConnection) -> None:
        with self._lock:
            self._connections.discard(connection)

    def end(self) -> None:
        with self._lock:
            self.ended.set()
            for connection in self._connections:
                _shut(connection)


class Service:
    """Asks one address, several questions at a time. Connections are kept for the next ones.

    timeout_s: for all that is asked together; may be changed. pause_s: between two tries, where the service names none.
    """

    def __init__(
        self,
        address: Address,
        *,
        key: str | None = None,
        timeout_s: float = 20.0,
        connections: int = 8,
        pause_s: float = 0.5,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._address = address
        self.timeout_s, self._pause_s = timeout_s, pause_s
        self._tls = (tls or ssl.create_default_context()) if address.is_tls else None
        self._headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "krea2-engine"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._idle: list[HTTPConnection] = []
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="filter-url")

    def ask_all(self, questions: Sequence[Callable[[], object]]) -> list[Any]:
        """Ask what each of these makes, in threads, and return the answers in their order. Raises `Unavailable` as soon
        as one has none."""
        asked = _Questions(self.timeout_s)
        futures = [self._threads.submit(self._ask, question, asked) for question in questions]
        try:
            done, late = wait(futures, timeout=asked.left_s, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            if late:
                raise Unavailable(f"{self._address} did not answer within {self.timeout_s:g} s")
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()
            asked.end()

    def close(self) -> None:
        """Close the connections that are kept."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        while self._idle:
            self._idle.pop().close()

    def _ask(self, question: Callable[[], object], asked: _Questions) -> Any:
        body = json.dumps(question(), separators=(",", ":")).encode()
        for tries in range(1, _TRIES + 1):
            try:
                return self._try(body, asked)
            except _PassingError as error:
                pause = self._pause_s if error.after_s is None else error.after_s
                if tries == _TRIES or pause >= asked.left_s or asked.ended.wait(pause):
                    raise
        raise AssertionError

    def _try(self, body: bytes, asked: _Questions) -> Any:
        """Ask once: over a connection that is kept, or if the service has closed that meanwhile, over a new one."""
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread took it
                break
            try:
                response = self._send(connection, body, asked)
            except (OSError, HTTPException):
                self._drop(connection, asked)
            else:
                return self._read(connection, response, asked)
        connection = self._connect(asked.left_s)
        try:
            response = self._send(connection, body, asked)
        except (OSError, HTTPException) as error:
            self._drop(connection, asked)
            raise self._failed(error) from None
        return self._read(connection, response, asked)

    def _connect(self, timeout_s: float) -> HTTPConnection:
        host, port = self._address.host, self._address.port
        if self._tls is not None:
            return HTTPSConnection(host, port, timeout=timeout_s, context=self._tls)
        return HTTPConnection(host, port, timeout=timeout_s)

    def _send(self, connection: HTTPConnection, body: bytes, asked: _Questions) -> HTTPResponse:
        asked.begin(connection)
        connection.timeout = asked.left_s
        if connection.sock is not None:
            connection.sock.settimeout(asked.left_s)
        connection.request("POST", self._address.target, body, self._headers)
        if asked.ended.is_set():  # before there was anything to shut
            raise TimeoutError
        return connection.getresponse()

    def _read(self, connection: HTTPConnection, response: HTTPResponse, asked: _Questions) -> Any:
        try:
            announced = response.length or 0
            content = b"" if announced > MOST_BYTES else response.read(MOST_BYTES + 1)
        except (OSError, HTTPException) as error:
            self._drop(connection, asked)
            raise self._failed(error) from None
        is_whole = max(announced, len(content)) <= MOST_BYTES
        if response.will_close or not is_whole or asked.ended.is_set():
            self._drop(connection, asked)
        else:
            asked.finish(connection)
            self._idle.append(connection)
        if response.status != 200:
            raise self._refused(response, content if is_whole else b"")
        if not is_whole:
            raise Unavailable(f"{self._address} answered more than {MOST_BYTES} bytes")
        try:
            return read_json(content, _LIMITS)
        except ValueError:
            raise WrongServiceError(f"{self._address} answered what is no JSON, or has too many parts") from None

    def _refused(self, response: HTTPResponse, content: bytes) -> Unavailable:
        """Say why a service refuses. Of its answer only codes are shown: texts may repeat what was asked."""
        status = response.status
        if 300 <= status < 400:
            return WrongServiceError(
                f"{self._address} answered {status}, which is not followed: give the URL that answers"
            )
        told = f"{self._address} answered {status}{_reason(content)}"
        if status in (401, 403):
            told += ": look at the key that key-env names"
        if status in _PASSING:
            return _PassingError(told, _seconds(response.headers.get("Retry-After")))
        return WrongServiceError(told) if status in _WRONG else Unavailable(told)

    def _failed(self, error: Exception) -> Unavailable:
        if isinstance(error, TimeoutError):
            return Unavailable(f"{self._address} did not answer within {self.timeout_s:g} s")
        if isinstance(error, ssl.SSLCertVerificationError):
            return WrongServiceError(f"the certificate of {self._address} is not trusted here: {error.verify_message}")
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        return _PassingError(f"{self._address} cannot be asked: {reason}")

    def _drop(self, connection: HTTPConnection, asked: _Questions) -> None:
        asked.finish(connection)
        connection.close()


def _shut(connection: HTTPConnection) -> None:
    """End what waits for a connection, in whichever thread."""
    if connection.sock is not None:
        with suppress(OSError):
            socket.shutdown(connection.sock, SHUT_RDWR)  # not TLS's own, which changes what another thread reads


def _reason(content: bytes) -> str:
    """The code of an error as OpenAI writes it, if it has one."""
    try:
        error = read_json(content, _LIMITS)["error"]
        for name in ("code", "type"):
            if isinstance(error.get(name), str) and _REASON.fullmatch(error[name]):
                return f" ({error[name]})"
    except (ValueError, LookupError, TypeError, AttributeError):
        pass
    return ""


def _seconds(text: str | None) -> float | None:
    """Read Retry-After, where it is in seconds."""
    return min(float(text), _LONGEST_PAUSE_S) if text and re.fullmatch(r"\d{1,6}(\.\d{1,6})?", text) else None
