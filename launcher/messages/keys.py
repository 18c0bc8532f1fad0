"""CURVE keys: which clients may talk to a server over RPC, and how each side knows the other.

A folder of keys, which `krea2 keys` makes, is for the server alone, in zmq's text files:

    server.key_secret   the server's pair, which also lets in its own processes
    server.key          its public part
    clients/NAME.key    the public part of every client that is let in
    NAME.key_secret     a client's pair with the server's public part: all that this client needs, on its machine
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from zmq.auth import create_certificates, load_certificate
from zmq.auth.asyncio import AsyncioAuthenticator

from engine.errors import ArgumentError
from launcher.logs import log_event
from launcher.messages.api_keys import ANONYMOUS

SERVER_FILE = "server.key_secret"
_SERVER = "server"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SERVER_KEY = re.compile(r"^\s*server-key = (\S{40})$", re.MULTILINE)


@dataclass(frozen=True)
class ServerKeys:
    """A server's own pair, and the names of the clients that it lets in, by their public keys."""

    public: bytes
    secret: bytes = field(repr=False)
    clients: Mapping[bytes, str]

    @classmethod
    def load(cls, folder: str | os.PathLike[str], parameter: str = "rpc_keys") -> ServerKeys:
        """Read a folder of keys. Raises `ArgumentError` about `parameter` if it cannot be read or a key is damaged."""
        try:
            public, secret = _load_pair(Path(folder) / SERVER_FILE)
            files = [file for file in (Path(folder) / "clients").iterdir() if file.suffix == ".key"]
            return cls(public, secret, {load_certificate(file)[0]: file.stem for file in files})
        except (OSError, ValueError) as error:
            reason = _reason(error)
            if isinstance(error, FileNotFoundError):
                command = f"krea2 keys {shlex.quote(str(folder))} --client NAME"
                reason = f"there is no {error.filename}; to fill a new or an empty folder, run: {command}"
            raise ArgumentError.of(parameter, f"a folder that `krea2 keys` has made ({reason})", str(folder)) from None

    def guard(self, server: zmq.asyncio.Socket, context: zmq.asyncio.Context) -> AsyncioAuthenticator:
        """Let only known clients through to a socket that is not bound yet. Its caller stops the authenticator."""
        authenticator = AsyncioAuthenticator(context)
        self.renew(authenticator)
        authenticator.start()
        server.curve_publickey, server.curve_secretkey = self.public, self.secret
        server.curve_server = True
        return authenticator

    def renew(self, authenticator: AsyncioAuthenticator) -> None:
        """Have these clients let in from now on, and no others."""
        authenticator.configure_curve_callback("*", self)

    @property
    def names(self) -> set[str]:
        """What `name_of` may give."""
        return {_SERVER, *self.clients.values()}

    def name_of(self, user_id: str) -> str | None:
        """Give the name of a client that was let in, by what zmq calls its user; None if it would not be any more."""
        key = user_id.encode()
        return _SERVER if key == self.public else self.clients.get(key)

    def callback(self, _domain: str, key: bytes) -> bool:
        """Whether the client with this public key is let in; the authenticator calls it."""
        is_known = key == self.public or key in self.clients
        if not is_known:
            log_event("client refused", level="warning", key=key.decode(errors="replace"))
        return is_known


@dataclass(frozen=True)
class ClientKeys:
    """A client's own pair, and the public key of its server."""

    public: bytes
    secret: bytes = field(repr=False)
    server: bytes

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> ClientKeys:
        """Read a `.key_secret` file. Raises `ArgumentError` if it cannot be read or is not a client's."""
        try:
            public, secret = _load_pair(Path(file))
            server = _SERVER_KEY.search(Path(file).read_text())
            if server is None:
                raise ValueError("no server key found in it")
            return cls(public, secret, server[1].encode())
        except (OSError, ValueError, TypeError) as error:
            allowed = f"a client's .key_secret file that `krea2 keys` has made ({_reason(error)})"
            raise ArgumentError.of("key", allowed, file if isinstance(file, str) else str(file)) from None

    def use(self, client: zmq.Socket[Any]) -> None:
        """Identify ourselves with these keys, to their server alone. For a socket that is not connected yet."""
        client.curve_publickey, client.curve_secretkey = self.public, self.secret
        client.curve_serverkey = self.server


def make_keys(folder: Path, client: str) -> Path:
    """Make a key pair for a client, and for the server if the folder has none. Returns the client's file.

    Raises `ArgumentError` for a name that is not allowed or taken, and for a folder with other files.
    """
    if not _NAME.fullmatch(client) or client in ("server", ANONYMOUS):
        raise ArgumentError.of(
            "client", f"letters, digits, '.', '_' or '-', and neither server nor {ANONYMOUS}", client
        )
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if not any(folder.iterdir()):
            folder.chmod(0o700)
            with _removed_if_it_fails(folder / "clients", folder / SERVER_FILE, folder / "server.key"):
                (folder / "clients").mkdir(mode=0o700)
                _, secret_file = _make_pair(folder, _SERVER, {})
                with secret_file.open("a") as file:  # so that it is a client's file, too
                    file.write(f"metadata\n    server-key = {_load_pair(secret_file)[0].decode()}\n")
        server = ServerKeys.load(folder, "folder")
        secret_file, public_file = folder / f"{client}.key_secret", folder / "clients" / f"{client}.key"
        if secret_file.exists() or public_file.exists():
            raise ArgumentError(f"client {client} has keys in {folder} already: give another name", parameter="client")
        with _removed_if_it_fails(secret_file, folder / public_file.name, public_file):
            made, _ = _make_pair(folder, client, {"server-key": server.public.decode()})
            made.rename(public_file)
    except OSError as error:
        raise ArgumentError.of("folder", f"one that can be written ({_reason(error)})", str(folder)) from None
    return secret_file


@contextmanager
def _removed_if_it_fails(*paths: Path) -> Iterator[None]:
    """Remove what there is of these, in vain where it cannot be, if the `with` block fails, as on a full disk."""
    try:
        yield
    except Exception:
        for path in paths:
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        raise


def _make_pair(folder: Path, name: str, metadata: dict[str, str]) -> tuple[Path, Path]:
    public_file, secret_file = map(Path, create_certificates(folder, name, metadata))
    for file in (public_file, secret_file):
        file.chmod(0o600)
    return public_file, secret_file


def _load_pair(file: Path) -> tuple[bytes, bytes]:
    file.stat()  # which says what is wrong, as zmq does not
    public, secret = load_certificate(file)
    if secret is None:
        raise ValueError("no secret key found in it")
    with suppress(zmq.ZMQError):
        if zmq.curve_public(secret) == public:
            return public, secret
    raise ValueError("its keys are damaged")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
