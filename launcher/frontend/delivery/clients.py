"""Talks to the clients of a front-end: who they are, what they send, and whether they are still there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable

import msgspec
import zmq
import zmq.asyncio

from engine.errors import ArgumentError, Krea2Error, ModerationBlockedError, QueueFullError, error_from_code
from launcher.logs import log_exception
from launcher.messages.api_keys import ANONYMOUS
from launcher.messages.client_messages import Acknowledge, Cancel, Closing, Failed, Generate, Ping, Pong, Request
from launcher.messages.connections.entrance import FILES, MOST, Entrance
from launcher.messages.connections.open_files import room_for_connections
from launcher.messages.connections.sockets import bind, send_now
from launcher.messages.encoding import Files, MessageError, decode_request, encode, most_frame_bytes, name_files
from launcher.messages.keys import ServerKeys
from launcher.messages.limits import Limits
from launcher.messages.own_clients import PREFIX, OwnClients, own_address
from launcher.threads import in_own_thread

MAX_CLIENTS = 1024
_MESSAGES_AHEAD = 64  # in zmq's queue for a client; what comes on top waits in its outbox
_MESSAGES_UNREAD = 4  # in zmq's queue of a client's, which may have pictures; what comes on top waits where it is
_MOST_FRAMES = 64  # of a message; those of fewer that are too many are answered
_OUTBOX_MESSAGES = 1024  # in an outbox, after which a message without a key is dropped
_OUTBOX_S = 0.05  # between attempts to empty the outboxes
_ENDING = Cancel, Acknowledge, Ping  # what a client may still send whose key was taken away
_FAREWELL_MS = 1000  # for the last replies to leave
_HANDSHAKE_MS = 10_000  # for whoever connects to show that it speaks zmq, and its key
_RESERVE = 64  # files that the front-end has open, and opens, beside its clients' connections and its ranks'
_RESERVE_A_PROCESS = 8  # of a rank or filter: its pipes and connections, and those of one that replaces it


class Clients:
    """Holds a ROUTER socket and the clients that have spoken to it, by ZMQ identity; with `keys`, only known ones.

    Clients connect at `address`, through an `Entrance` that has room for as many as so many `processes`, of ranks and
    filters, leave files for; processes of our own do so at the `own_address` of the run folder. A client holds a lease
    that every message renews; processes of our own (`own`) hold theirs until `end_own` says that they have ended.
    on_message gets decoded messages, but for pings, and the files behind them by the `pictures` that they are, within
    `limits`. What a slow client cannot take yet waits in its outbox, where a newer message under the same key replaces
    an older one: so an outbox grows with a client's requests, and never with time.
    """

    def __init__(
        self,
        address: str,
        context: zmq.asyncio.Context,
        *,
        run_folder: str,
        processes: int = 1,
        on_message: Callable[[bytes, Request, Files], None],
        limits: Limits = Limits(),  # noqa: B008
        keys: ServerKeys | None = None,
        own: OwnClients | None = None,
    ) -> None:
        self._on_message, self._limits = on_message, limits
        self._own = OwnClients() if own is None else own
        self._last_heard: dict[bytes, float] = {}
        self._outboxes: dict[bytes, dict[Hashable, list[bytes]]] = {}
        self.dropped_messages = 0
        self._socket = context.socket(zmq.ROUTER)
        self._socket.set(zmq.MAXMSGSIZE, most_frame_bytes(limits))
        self._socket.set(zmq.RCVHWM, _MESSAGES_UNREAD)
        self._socket.set(zmq.SNDHWM, _MESSAGES_AHEAD)
        self._socket.set(zmq.LINGER, _FAREWELL_MS)
        self._socket.set(zmq.ROUTER_MANDATORY, 1)  # says what it cannot take
        self._socket.set(zmq.ROUTER_HANDOVER, 1)  # a client whose connection broke comes back under its name
        self._keys = keys
        self._names: dict[bytes, str | None] = {}  # of clients with keys; None for a key that is no longer known
        self._authenticator = None if keys is None else keys.guard(self._socket, context)
        self._socket.set(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        inside = bind(self._socket, own_address(run_folder))
        room = room_for_connections(reserve=_RESERVE + _RESERVE_A_PROCESS * processes, files=FILES)
        self._entrance = Entrance(address, inside, most=min(MOST, room), most_frames=_MOST_FRAMES)

    @property
    def address(self) -> str:
        """Where clients connect."""
        return self._entrance.address

    @property
    def connections(self) -> int:
        """How many connections of clients there are, of our own processes not counted."""
        return self._entrance.connections

    async def receive(self) -> None:
        """Handle messages until cancelled."""
        while True:
            try:
                await self._handle(await self._receive())
            except Exception as error:  # our own mistake, which must not cost the other clients their requests
                log_exception(error)
                self.dropped_messages += 1
            await asyncio.sleep(0)  # recv_multipart does not yield to other tasks while messages are there

    async def _receive(self) -> list[bytes]:
        """Wait for a message, and note whose key the client has that sent it."""
        if self._keys is None:
            return await self._socket.recv_multipart()
        frames = await self._socket.recv_multipart(copy=False)
        self._names[frames[0].bytes] = self._keys.name_of(str(frames[-1].get("User-Id")))
        return [frame.bytes for frame in frames]

    async def send_waiting(self) -> None:
        """Empty the outboxes as clients take their messages, until cancelled."""
        while True:
            await asyncio.sleep(_OUTBOX_S)
            for client, outbox in list(self._outboxes.items()):
                while outbox:
                    key = next(iter(outbox))
                    if not send_now(self._socket, [client, *outbox[key]]):
                        break
                    del outbox[key]
                else:
                    del self._outboxes[client]

    def send(self, client: bytes, message: msgspec.Struct, *frames: bytes, key: Hashable = None) -> None:
        """Send without waiting.

        key: (kind, request_id, …), whose older message it replaces in the outbox; without one it is dropped if the
        outbox is full.
        """
        all_frames = [encode(message), *frames]
        if client not in self._outboxes and send_now(self._socket, [client, *all_frames]):
            return
        if client in self._last_heard:
            outbox = self._outboxes.setdefault(client, {})
            if key is not None or len(outbox) < _OUTBOX_MESSAGES:
                outbox[object() if key is None else key] = all_frames

    def send_failure(self, client: bytes, request_id: str | None, error: Krea2Error) -> None:
        """Send `Failed` for a request that is not known, or for a message that is part of none."""
        self.send(client, failure(request_id, error))

    def forget(self, client: bytes, request_id: str) -> None:
        """Drop messages that wait under a key of this request: the client waits for them no more."""
        outbox = self._outboxes.get(client, {})
        for key in [key for key in outbox if isinstance(key, tuple) and key[1] == request_id]:
            del outbox[key]

    def end_leases(self, lease_s: float) -> list[bytes]:
        """Forget the clients that have been silent for longer than their lease, and return them.

        Only time in which they could be heard counts: in an `AwakeLoop`, that is the loop's.
        """
        now = asyncio.get_running_loop().time()
        silent = [
            client for client, heard in self._last_heard.items() if now - heard > lease_s and not self.is_own(client)
        ]
        for client in silent:
            self._forget_client(client)
        return silent

    def caller_of(self, client: bytes, message: Generate) -> str:
        """Say whose request a client sends: that of its own key, or of the one that a process of ours names."""
        return (message.caller if self.is_own(client) else self._names.get(client)) or ANONYMOUS

    def read_keys(self, folder: str) -> int:
        """Read the folder of keys again, in any thread, and know its clients from now on. Returns how many these are.

        Raises `ArgumentError` if it is damaged, or if the server's own pair has changed, which its socket keeps.
        """
        assert self._keys is not None
        assert self._authenticator is not None
        keys = ServerKeys.load(folder)
        if keys.public != self._keys.public:
            raise ArgumentError(f"rpc_keys {folder}: the server's own pair is another", parameter="rpc_keys")
        self._keys = keys
        keys.renew(self._authenticator)
        return len(keys.clients)

    @property
    def key_names(self) -> set[str]:
        """The names of all keys that are let in."""
        return set() if self._keys is None else self._keys.names

    def is_own(self, client: bytes) -> bool:
        """Whether a client is a process of our own that lives."""
        return client in self._own

    def end_own(self, client: bytes) -> None:
        """Forget a client that was a process of our own, and what may still come from it."""
        self._own.remove(client)
        self._forget_client(client)

    def _forget_client(self, client: bytes) -> None:
        self._last_heard.pop(client, None)
        self._names.pop(client, None)
        self._outboxes.pop(client, None)

    def close(self, reason: Krea2Error) -> None:
        """Tell all clients why nobody will answer any more. The socket is its context's to close, before `end`."""
        for client in self._last_heard:
            self.send(client, Closing(code=reason.code, message=reason.message))
        if self._authenticator is not None:
            self._authenticator.stop()
        self._entrance.stop_listening()

    def end(self) -> None:
        """Wait for the last replies to have left, for a second at most, and end all connections."""
        self._entrance.close()

    async def _handle(self, frames: list[bytes]) -> None:
        client, *sent = frames
        if not sent or (client.startswith(PREFIX) and not self.is_own(client)):
            self.dropped_messages += 1
            return
        try:
            message = decode_request(sent[0])
            files = name_files(message, sent[1:], self._limits)
        except (MessageError, ArgumentError) as problem:
            self.dropped_messages += 1
            error = problem.error if isinstance(problem, MessageError) else problem
            about = problem.request_id if isinstance(problem, MessageError) else getattr(message, "request_id", None)
            self.send_failure(client, about, error)
            return
        if isinstance(message, Generate) and message.idempotency_key is not None and files:
            await in_own_thread(lambda: files.digest)  # 50 MB keep nothing but the next message waiting
            if client.startswith(PREFIX) and not self.is_own(client):  # it has ended meanwhile
                return
        refusal = self._refusal(client, message)
        if refusal is not None:
            self.send_failure(client, getattr(message, "request_id", None), refusal)
            return
        self._last_heard[client] = asyncio.get_running_loop().time()
        if isinstance(message, Ping):
            self.send(client, Pong())
        else:
            self._on_message(client, message, files)

    def _refusal(self, client: bytes, message: Request) -> Krea2Error | None:
        """Why a client is not heard, if it is not."""
        if self.is_own(client):
            return None
        if client not in self._last_heard and len(self._last_heard) >= MAX_CLIENTS:
            return QueueFullError(f"{MAX_CLIENTS} clients are connected, and more are not served")
        if self._keys is not None and self._names.get(client) is None and not isinstance(message, _ENDING):
            return error_from_code("invalid_api_key", "the client's key is no longer among those that are let in")
        if isinstance(message, Generate) and message.caller is not None:
            return ArgumentError("caller must be left out: a client is known by its own key", parameter="caller")
        return None


def failure(request_id: str | None, error: Krea2Error) -> Failed:
    """Make the message of an error."""
    return Failed(
        request_id=request_id,
        code=error.code,
        message=error.message,
        parameter=error.parameter,
        retry_after_s=error.retry_after_s,
        category=error.category if isinstance(error, ModerationBlockedError) else None,
    )
