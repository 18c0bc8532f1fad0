"""Services are asked by https only if their certificate is of an authority that is trusted here."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from launcher.filters.protocol import Unavailable
from launcher.filters.urls.address import read_address
from launcher.filters.urls.asking import Service
from tests.launcher.filters.urls.stand_in import Reply, serving
from tests.launcher.processes import PATIENCE_S


def certificate(address: str, folder: Path) -> ssl.SSLContext:
    """Write a certificate for an address, which nobody but itself vouches for, and return what a server takes."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now, day = datetime.now(UTC), timedelta(days=1)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
    hosts = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
    signed = made.add_extension(hosts, critical=True).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    (folder / "certificate.pem").write_bytes(signed.public_bytes(pem))
    plain = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context


@pytest.mark.parametrize(
    ("certified", "is_trusted", "told"),
    [
        ("127.0.0.1", True, None),
        ("127.0.0.1", False, "the certificate of 127.0.0.1:.* is not trusted here: self-signed certificate"),
        ("127.0.0.2", True, "the certificate of 127.0.0.1:.* is not trusted here: .* not valid for '127.0.0.1'"),
    ],
)
def test_a_service_is_asked_if_its_certificate_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certified: str, is_trusted: bool, told: str | None
) -> None:
    context = certificate(certified, tmp_path)
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
    with serving(context) as stand_in:
        stand_in.reply = lambda body: Reply({"answer": body})
        address = read_address(stand_in.url, "moderations", insecure=False)
        service = Service(address, key="sk-123", timeout_s=PATIENCE_S, connections=1, pause_s=0.0)
        if told is None:
            for number in range(3):
                assert service.ask_all([lambda number=number: number]) == [{"answer": number}]  # type: ignore[misc]
            assert len(stand_in.connections) == 1
            stand_in.reply = lambda body: Reply({}, hangs=True)
            service.timeout_s = 0.15
            with pytest.raises(Unavailable, match="did not answer within"):
                service.ask_all([lambda: 0])
        else:
            with pytest.raises(Unavailable, match=told):
                service.ask_all([lambda: 0])
            assert stand_in.requests == []
        service.close()
