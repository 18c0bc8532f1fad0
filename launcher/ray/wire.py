"""What the ingress and the engines of a cluster send each other: bytes, so that releases can mix while one is replaced.

Requests are the frames of `client_messages`, as they are over ZMQ; replies travel several at a time.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from launcher.messages.client_messages import Reply
from launcher.messages.encoding import decode_reply, encode


class Hints(msgspec.Struct, frozen=True, kw_only=True):
    """What routing knows of a request.

    ticket: the engine's id of this attempt. avoid: replicas that have failed it, to be taken last. key: its idempotency
    key with the caller it is of, so that the same go to the same replica; None for any replica. work: how much there is
    to do, in any unit, the same for all requests: denoise steps times pixels.
    """

    ticket: str
    avoid: tuple[str, ...] = ()
    key: str | None = None
    work: float = 0.0


encode_hints = encode
decode_hints = msgspec.msgpack.Decoder(Hints).decode
_Packed = list[tuple[bytes, bytes]]
_decode = msgspec.msgpack.Decoder(_Packed).decode


def encode_replies(replies: Iterable[tuple[Reply, bytes]]) -> bytes:
    """Encode replies with the file behind each, which is empty where there is none."""
    return encode([(encode(reply), file) for reply, file in replies])


def decode_replies(chunk: bytes) -> list[tuple[Reply, bytes]]:
    """Decode what `encode_replies` has made, of a newer release, too. Raises `msgspec.DecodeError`."""
    return [(decode_reply(header), file) for header, file in _decode(chunk)]


def encode_named(name: str, chunk: bytes) -> bytes:
    """Put the name of the replica that answers before its answer."""
    return encode((name, chunk))


decode_named = msgspec.msgpack.Decoder(tuple[str, bytes]).decode
