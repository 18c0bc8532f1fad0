"""Defines what the process that keeps a Ray gets on its stdin, and what it answers on its stdout."""

from __future__ import annotations

from typing import Any

import msgspec

from launcher.messages.client_messages import Message
from launcher.messages.configs import Ended, Starting


class ClusterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How to run a cluster on one machine.

    folder: the run folder, of whoever starts it. args: of the application, as in a Serve config; application:
    MODULE:FUNCTION that makes it of them. host, port: where Serve's proxy listens, which is free. cpus: as many of
    Ray's CPUs as there are, however many the machine has: what needs them all has to run here. gpus: that all replicas
    together need where the machine has any, 0 to look for none. start_timeout_s: seconds for the replicas to be ready;
    drain_s: for what runs to be finished when it stops.
    """

    folder: str = ""
    args: dict[str, Any]
    application: str = "launcher.ray:build_app"
    host: str = "127.0.0.1"
    port: int
    cpus: int
    gpus: int = 0
    start_timeout_s: float = 600.0
    drain_s: float = 0.0


class OpenPort(msgspec.Struct, frozen=True, order=True):
    """A TCP port at which a process listens on every interface."""

    port: int
    process: str


class Serving(Message, frozen=True, kw_only=True):
    """All replicas are ready. open_ports: what Ray has open on every interface."""

    open_ports: tuple[OpenPort, ...]


class NotStarted(Message, frozen=True, kw_only=True):
    """Ray itself did not come up, before anything of ours began. again: because it was slow, so that it may yet."""

    message: str
    again: bool


class CutOff(Message, frozen=True, kw_only=True):
    """What ran when it was to stop took too long."""

    requests: int


class Output(Message, frozen=True, kw_only=True):
    """A line that a replica has printed."""

    process: str
    line: str


decode_report = msgspec.msgpack.Decoder(Starting | Serving | NotStarted | CutOff | Output | Ended).decode
