"""nginx and HAProxy, started with configurations of docs/operations.md. They listen on sockets in a folder."""

from __future__ import annotations

import asyncio
import re
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.launcher.fake_ranks import DEADLINE_S

NAME = "images.example"
URL = f"https://{NAME}"
_DOCUMENT = (Path(__file__).parents[4] / "docs" / "operations.md").read_text()
_NGINX = """
daemon off;
master_process off;  # whose workers would be another user, who cannot use the folder
pid {folder}/pid;
error_log {folder}/log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{written}
}}
"""


def written(kind: str) -> list[str]:
    """The configurations in the document, as they are written."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", _DOCUMENT, re.MULTILINE | re.DOTALL)


def replaced(text: str, changes: dict[str, str]) -> str:
    """A configuration where it is tested: each of the changed lines must be there."""
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@asynccontextmanager
async def nginx(folder: Path, configuration: str, server: httpx.URL) -> AsyncIterator[httpx.AsyncClient]:
    """A client of nginx in front of a server."""
    listening = folder / "nginx"
    changes = {
        "listen 443 ssl;": f"listen unix:{listening} ssl;",
        "/etc/ssl/images.example.pem": str(certificate(folder)),
        "/etc/ssl/images.example.key": str(folder / "both.pem"),
        "http://127.0.0.1:30000": f"http://127.0.0.1:{server.port}",
    }
    file = folder / "nginx.conf"
    file.write_text(_NGINX.format(folder=folder, written=replaced(configuration, changes)))
    async with _proxy(
        "nginx", "-c", str(file), "-p", str(folder), "-e", f"{folder}/log", listening=listening
    ) as client:
        yield client


@asynccontextmanager
async def haproxy(folder: Path, configuration: str, server: httpx.URL) -> AsyncIterator[httpx.AsyncClient]:
    """A client of HAProxy in front of a server. Its socket for commands is `commands` in the folder."""
    listening = folder / "haproxy"
    changes = {
        "bind :443": f"bind unix@{listening}",
        "/etc/ssl/images.example.pem": str(certificate(folder)),
        "127.0.0.1:30000": f"127.0.0.1:{server.port}",
    }
    file = folder / "haproxy.cfg"
    own = f"global\n    stats socket {folder}/commands level admin\n\n"
    file.write_text(own + replaced(configuration, changes))
    async with _proxy("haproxy", "-db", "-f", str(file), listening=listening) as client:
        yield client


async def checks_of_haproxy(folder: Path) -> list[str]:
    """What came of the last check of each server: status and code, as in `L7OK 200`."""
    reader, writer = await asyncio.open_unix_connection(folder / "commands")
    writer.write(b"show stat\n")
    header, *rows = (await reader.read()).decode().removeprefix("# ").strip().splitlines()
    writer.close()
    servers = [dict(zip(header.split(","), row.split(","), strict=False)) for row in rows]
    return [f"{row['check_status']} {row['check_code']}" for row in servers if row["svname"] == "krea2-1"]


def certificate(folder: Path) -> Path:
    """A file of a certificate of our own and its key."""
    file = folder / "both.pem"
    if not file.exists():
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={NAME}"]
        command += [
            "-addext",
            f"subjectAltName=DNS:{NAME}",
            "-keyout",
            str(folder / "key"),
            "-out",
            str(folder / "crt"),
        ]
        subprocess.run(command, check=True, capture_output=True)
        file.write_text((folder / "crt").read_text() + (folder / "key").read_text())
    return file


@asynccontextmanager
async def _proxy(program: str, *arguments: str, listening: Path) -> AsyncIterator[httpx.AsyncClient]:
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None or shutil.which("openssl") is None:
        pytest.skip(f"{program} and openssl are not both installed")
    process = await asyncio.create_subprocess_exec(path, *arguments)
    context = ssl.create_default_context(cafile=listening.parent / "crt")
    transport = httpx.AsyncHTTPTransport(uds=str(listening), verify=context)
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not await _takes_connections(listening):
                assert process.returncode is None, f"{program} has ended"
                await asyncio.sleep(0.01)
        async with httpx.AsyncClient(transport=transport, base_url=URL, timeout=DEADLINE_S) as client:
            yield client
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
        for left in (listening, listening.parent / "commands"):
            left.unlink(missing_ok=True)


async def _takes_connections(listening: Path) -> bool:
    """Whether the socket is there and listens, which comes a moment later."""
    try:
        _, writer = await asyncio.open_unix_connection(listening)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    writer.close()
    return True
