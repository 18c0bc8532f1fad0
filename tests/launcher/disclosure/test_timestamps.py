"""Timestamps of signatures, from an authority of the tests' own: openssl behind a server."""

from __future__ import annotations

import io
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import c2pa
import pytest

from launcher.disclosure import c2pa as own
from tests.launcher.disclosure.authority import certified
from tests.launcher.disclosure.test_c2pa import created, disclosure, manifest
from tests.launcher.disclosure.test_xmp import written
from tests.launcher.processes import PATIENCE_S

_CONFIG = """\
[req]
distinguished_name = name
prompt = no
[name]
O = Tests
CN = Tests' clock
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[clock]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = critical, timeStamping
[tsa]
serial = serial
signer_cert = clock.pem
signer_key = clock.key
signer_digest = sha256
default_policy = 1.2.3.4
digests = sha256, sha384, sha512
ess_cert_id_alg = sha256
"""


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is logged."""
    heard: list[tuple[str, str]] = []
    monkeypatch.setattr(own, "log_event", lambda event, **fields: heard.append((event, fields["message"])))
    return heard


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=PATIENCE_S)


@contextmanager
def clock(folder: Path) -> Iterator[str]:
    """Serve timestamps at the URL that this yields, signed by what root.pem in the folder certifies."""
    folder.mkdir()
    (folder / "openssl.conf").write_text(_CONFIG)
    (folder / "serial").write_text("01\n")
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-config", "openssl.conf")
    openssl(folder, "req", "-x509", *new, "-keyout", "root.key", "-out", "root.pem", "-extensions", "root")
    openssl(folder, "req", *new, "-keyout", "clock.key", "-out", "clock.csr")
    by_root = ("-CA", "root.pem", "-CAkey", "root.key", "-CAcreateserial", "-extfile", "openssl.conf")
    openssl(folder, "x509", "-req", "-in", "clock.csr", *by_root, "-extensions", "clock", "-out", "clock.pem")

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            (folder / "query").write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
            named = ("-queryfile", "query", "-config", "openssl.conf", "-section", "tsa", "-out", "reply")
            openssl(folder, "ts", "-reply", *named)
            reply = (folder / "reply").read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, which signs the timestamps")
def test_a_signature_has_the_authority_s_time(
    tmp_path: Path, events: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "_TIMESTAMP_S", PATIENCE_S)
    signing = certified()
    with clock(tmp_path / "clock") as url:
        file = written("png", disclosure(signing, tmp_path, c2pa_timestamp=url))
    assert not events
    told = datetime.fromisoformat(manifest(file, "png", signing)["signature_info"]["time"])
    assert abs(told - datetime.now(UTC)) < timedelta(hours=1)
    anchors = signing.root.decode() + (tmp_path / "clock" / "root.pem").read_text()
    context = c2pa.Context.from_dict({"trust": {"trust_anchors": anchors}, "verify": {"verify_trust": True}})
    with c2pa.Reader("image/png", io.BytesIO(file), context=context) as reader:
        found = {each["code"] for each in reader.get_validation_results()["activeManifest"]["success"]}
    assert {"timeStamp.validated", "timeStamp.trusted"} <= found


def test_an_authority_that_does_not_answer_keeps_no_picture_and_is_left_alone(
    tmp_path: Path, events: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    signing = certified()
    monkeypatch.setattr(own, "_TIMESTAMP_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        signed = disclosure(signing, tmp_path, c2pa_timestamp=url)
        for _ in range(2):
            created(written("jpeg", signed), "jpeg", signing)
        assert events == [("timestamp failed", "no answer within 0.2 s")]
        silent.settimeout(PATIENCE_S)
        asked, _ = silent.accept()
        silent.settimeout(0)
        with asked, pytest.raises(BlockingIOError):  # once
            silent.accept()


def test_an_authority_that_fails_keeps_no_picture(tmp_path: Path, events: list[tuple[str, str]]) -> None:
    signing = certified()
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/"
    created(written("jpeg", disclosure(signing, tmp_path, c2pa_timestamp=url)), "jpeg", signing)
    ((event, message),) = events
    assert event == "timestamp failed"
    assert url in message
