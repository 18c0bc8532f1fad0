"""Certificates of the tests' own authority, to sign manifests with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAY = timedelta(days=1)
_PEM = serialization.Encoding.PEM


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_file(key: Any, *, password: bytes | None = None, form: str = "PKCS8") -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return bytes(key.private_bytes(_PEM, getattr(serialization.PrivateFormat, form), encryption))


@dataclass(frozen=True)
class Signing:
    """A key, the chain of certificates for it, its own first, and the authority's certificate. In PEM."""

    key: bytes
    chain: bytes
    root: bytes

    def options(self, folder: Path) -> dict[str, str]:
        """Write them as files, and return the options that name these."""
        (folder / "chain.pem").write_bytes(self.chain)
        (folder / "key.pem").write_bytes(self.key)
        (folder / "key.pem").chmod(0o600)
        return {"c2pa_certificate": str(folder / "chain.pem"), "c2pa_key": str(folder / "key.pem")}


def certified(
    key: Any = None,
    *,
    days: float = 1,
    begins: float = -2,
    usage: x509.ObjectIdentifier | None = ExtendedKeyUsageOID.EMAIL_PROTECTION,
) -> Signing:
    """Certify a key, a new one if none is given, from and until so many days from now."""
    key = new_key() if key is None else key
    own, now = new_key(), datetime.now(UTC)
    root = (
        _certificate("Tests' authority", "Tests' authority", own.public_key(), now - 3 * _DAY, now + 3 * _DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_usage(certificates=True), critical=True)
        .sign(own, hashes.SHA256())
    )
    builder = (
        _certificate("Tests' signer", "Tests' authority", key.public_key(), now + begins * _DAY, now + days * _DAY)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certificates=False), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(own.public_key()), critical=False)
    )
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
    leaf, root_pem = builder.sign(own, hashes.SHA256()).public_bytes(_PEM), root.public_bytes(_PEM)
    return Signing(key_file(key), leaf + root_pem, root_pem)


def _certificate(name: str, issuer: str, key: Any, begins: datetime, ends: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(common: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tests"), x509.NameAttribute(NameOID.COMMON_NAME, common)]
    )


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )
