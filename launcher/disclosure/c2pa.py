"""Signs C2PA manifests into files: who vouches, by a certificate, for that a model drew a picture.

Needs the extra `c2pa`, whose packages are imported for a signer alone.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engine
from engine.errors import ArgumentError, printable
from launcher.disclosure.xmp import DRAWN
from launcher.logs import log_event

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

_MOST_BYTES = 2**20  # of a file of certificates or of a key
_TIMESTAMP_S = 5.0  # for an authority's answer; its library gives up by itself after 30
_TIMESTAMP_PAUSE_S = 60.0  # without asking an authority that did not answer
_NEEDS = "pip install 'krea2-engine[c2pa]'"
_CERTIFICATE = (
    "a certificate for signing, its own and those up to the authority's in PEM: with digitalSignature among its key "
    "usages and, of its extended ones, C2PA's claim signing (1.3.6.1.4.1.62558.2.1) or e-mail protection"
)
_VERIFY = {"verify_after_sign": False, "remote_manifest_fetch": False, "ocsp_fetch": False}
_SETTINGS = {"verify": _VERIFY, "builder": {"thumbnail": {"enabled": False}}}


class ManifestSigner:
    """Signs files with an operator's certificate and key. Thread-safe.

    certificate and key: files in PEM. timestamp: the URL of an authority (RFC 3161) that is asked for the time of each
    signature; None for none. Raises `ArgumentError` for what cannot be used, found by signing a file. ends: when the
    certificate does, in UTC, after which nothing can be signed. key_file: as given.
    """

    def __init__(self, certificate: str, key: str, timestamp: str | None = None) -> None:
        try:
            import c2pa
        except ImportError:
            raise ArgumentError(f"c2pa_certificate needs c2pa-python: {_NEEDS}", parameter="c2pa_certificate") from None
        chain = _read("c2pa_certificate", certificate)
        private, algorithm, self.ends = _check(chain, _read("c2pa_key", key))

        def context(url: str | None) -> Any:
            asked = None if url is None else url.encode()
            info = c2pa.C2paSignerInfo(algorithm.encode(), chain, private, asked)
            return c2pa.Context.from_dict(_SETTINGS, signer=c2pa.Signer.from_info(info))

        self._c2pa, self.key_file = c2pa, key
        self._asks_again = 0.0  # when the authority is asked again, by the monotonic clock
        self._timestamped: Any = None
        try:
            self._plain = context(None)
            self._try_out()
            if timestamp is not None:
                self._timestamped = context(timestamp)
        except c2pa.C2paError as error:
            raise _refused(str(error)) from None

    def sign(self, file: bytes, image_format: str, *, source_type: str = DRAWN, model: str | None = None) -> bytes:
        """Return a file with a signed manifest: that it was made, by this engine, how (one of IPTC's digital source
        types), and by which model if that is given. Raises what the library does if it cannot be signed."""
        agent = {"name": model} if model else {"name": "krea2-engine", "version": engine.__version__}
        action = {"action": "c2pa.created", "digitalSourceType": source_type, "softwareAgent": agent}
        manifest = {
            "claim_generator_info": [{"name": "krea2-engine", "version": engine.__version__}],
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
        }
        if self._timestamped is not None and time.monotonic() >= self._asks_again:
            try:
                return self._within(_TIMESTAMP_S, manifest, file, image_format)
            except (self._c2pa.C2paError, FutureTimeoutError) as error:
                self._asks_again = time.monotonic() + _TIMESTAMP_PAUSE_S
                reason = str(error) or f"no answer within {_TIMESTAMP_S:g} s"
                log_event("timestamp failed", level="warning", message=printable(reason))
        return self._signed(self._plain, manifest, file, image_format)

    def _signed(self, context: Any, manifest: Mapping[str, Any], file: bytes, image_format: str) -> bytes:
        signed = io.BytesIO()
        self._c2pa.Builder(manifest, context).sign(f"image/{image_format}", io.BytesIO(file), signed)
        return signed.getvalue()

    def _within(self, seconds: float, *arguments: Any) -> bytes:
        """Sign with a timestamp, in a thread that is left alone if that takes longer."""
        done: Future[bytes] = Future()

        def sign() -> None:
            try:
                done.set_result(self._signed(self._timestamped, *arguments))
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=sign, daemon=True, name="timestamp").start()
        return done.result(seconds)

    def _try_out(self) -> None:
        """Sign a small file and read it back, whoever it is that trusts the certificate."""
        from PIL import Image

        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, "jpeg")
        signed = self.sign(file.getvalue(), "jpeg")
        context = self._c2pa.Context.from_dict({"verify": _VERIFY | {"verify_trust": False}})
        results = self._c2pa.Reader("image/jpeg", io.BytesIO(signed), context=context).get_validation_results()
        failures = (results or {}).get("activeManifest", {}).get("failure", ())
        if failures:
            raise _refused("; ".join(f"{each['explanation']}" for each in failures))


def _refused(reason: str) -> ArgumentError:
    return ArgumentError(
        printable(f"c2pa_certificate must be {_CERTIFICATE}; this one cannot be used: {reason}"),
        parameter="c2pa_certificate",
    )


def _read(parameter: str, path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ArgumentError(
            printable(f"{parameter}: {path} cannot be read: {error.strerror}"), parameter=parameter
        ) from None
    if len(data) > _MOST_BYTES:
        raise ArgumentError.of(parameter, f"a file of at most {_MOST_BYTES} bytes", path)
    return data


def _check(chain: bytes, key: bytes) -> tuple[bytes, str, datetime]:
    """Compare a key with the first of a chain of certificates. Returns it as PKCS#8 in PEM, C2PA's name for how it
    signs, and when the certificate ends."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        certificate = x509.load_pem_x509_certificates(chain)[0]
        public = certificate.public_key()
    except Exception:  # whatever it raises over what is none
        raise ArgumentError(
            f"c2pa_certificate must be {_CERTIFICATE}; this file has none", parameter="c2pa_certificate"
        ) from None
    if certificate.not_valid_after_utc <= datetime.now(UTC):
        raise _refused(f"it ended on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    try:
        private = serialization.load_pem_private_key(key, password=None)
    except TypeError:
        raise ArgumentError("c2pa_key must be a private key without a password", parameter="c2pa_key") from None
    except Exception:  # which says nothing of what is in the file
        raise ArgumentError("c2pa_key must be a private key in PEM", parameter="c2pa_key") from None
    der = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*der) != public.public_bytes(*der):
        told = "the first certificate of c2pa_certificate is another key's"
        raise ArgumentError(f"c2pa_key must be the certificate's: {told}", parameter="c2pa_key")
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem, _algorithm(private), certificate.not_valid_after_utc


def _algorithm(key: PrivateKeyTypes) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    curves = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in curves:
        return curves[key.curve.name]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    raise ArgumentError(
        "c2pa_key must be of the curves P-256, P-384, P-521 or Ed25519, or RSA, as C2PA has it", parameter="c2pa_key"
    )
