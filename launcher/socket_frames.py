"""What processes say to each other over a socket pair: a message behind its length, then bytes whose sizes it tells."""

from __future__ import annotations

import asyncio
import socket
import struct

_HEADER = struct.Struct(">I")  # the length of a message


# ---- in a process that does one thing after the other


def send(end: socket.socket, message: bytes, *parts: bytes) -> None:
    """Send a message and what belongs to it."""
    for part in (_HEADER.pack(len(message)) + message, *parts):
        end.sendall(part)


def receive(end: socket.socket, size: int) -> bytes:
    """Receive this many bytes. Raises `EOFError` where the other end is closed before."""
    data = bytearray(size)
    view = memoryview(data)
    while view:
        got = end.recv_into(view)
        if not got:
            raise EOFError
        view = view[got:]
    return bytes(data)


def receive_message(end: socket.socket) -> bytes:
    """Receive a message of somebody who is trusted with its length. Raises `EOFError`."""
    return receive(end, *_HEADER.unpack(receive(end, _HEADER.size)))


# ---- in an event loop


async def send_async(end: socket.socket, message: bytes, *parts: bytes) -> None:
    """Send a message and what belongs to it."""
    loop = asyncio.get_running_loop()
    for part in (_HEADER.pack(len(message)) + message, *parts):
        await loop.sock_sendall(end, part)


async def receive_async(end: socket.socket, size: int) -> bytes:
    """Receive this many bytes. Raises `EOFError` where the other end is closed before."""
    data = bytearray(size)
    view, loop = memoryview(data), asyncio.get_running_loop()
    while view:
        got = await loop.sock_recv_into(end, view)
        if not got:
            raise EOFError
        view = view[got:]
    return bytes(data)


async def receive_message_async(end: socket.socket, most: int) -> bytes:
    """Receive a message of at most this many bytes. Raises `EOFError`, and `ValueError` for a longer one."""
    (size,) = _HEADER.unpack(await receive_async(end, _HEADER.size))
    if size > most:
        raise ValueError(f"a message of {size} bytes, of at most {most}")
    return await receive_async(end, size)
