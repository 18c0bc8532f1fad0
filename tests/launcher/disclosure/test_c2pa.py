"""Manifests that are signed into files, read back by C2PA's own library."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import c2pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from PIL import Image

import engine
from engine.errors import ArgumentError
from launcher.client.async_client import AsyncClient
from launcher.disclosure.disclosure import Disclosure
from launcher.disclosure.xmp import COMPOSITE, DRAWN
from launcher.messages.configs import DisclosureConfig
from launcher.requests.image_metadata import read_made
from launcher.setup.configure import configure
from launcher.setup.keywords import DEFAULTS
from tests.launcher.disclosure.authority import Signing, certified, key_file, new_key
from tests.launcher.disclosure.test_xmp import FORMATS, SOME_SEEN, SOURCE, picture, said, written
from tests.launcher.fake_ranks import fake_engine, run

MIME = {name: f"image/{name}" for name in FORMATS}


@pytest.fixture(scope="module")
def signing() -> Signing:
    return certified()


def disclosure(signing: Signing, folder: Path, **more: Any) -> Disclosure:
    return Disclosure.of(DisclosureConfig(**signing.options(folder), **more))


def manifest(file: bytes, output_format: str, signing: Signing) -> dict[str, Any]:
    """The manifest of a file, checked: that its signature is the certificate's, of this file and trusted."""
    settings = {"trust": {"trust_anchors": signing.root.decode()}, "verify": {"verify_trust": True}}
    with c2pa.Reader(MIME[output_format], io.BytesIO(file), context=c2pa.Context.from_dict(settings)) as reader:
        assert reader.get_validation_state() == "Trusted"
        read: dict[str, Any] = json.loads(reader.json())
    return read["manifests"][read["active_manifest"]]  # type: ignore[no-any-return]


def created(file: bytes, output_format: str, signing: Signing) -> dict[str, Any]:
    (assertion,) = manifest(file, output_format, signing)["assertions"]
    (action,) = assertion["data"]["actions"]
    assert action.pop("action") == "c2pa.created"
    return action  # type: ignore[no-any-return]


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_signed_file_says_what_drew_it_and_is_otherwise_as_it_was(
    output_format: str, signing: Signing, tmp_path: Path
) -> None:
    file, unsigned = written(output_format, disclosure(signing, tmp_path)), written(output_format)
    assert created(file, output_format, signing) == {
        "digitalSourceType": DRAWN, "softwareAgent": {"name": "Krea-2-Turbo"},
    }  # fmt: skip
    (generator,) = manifest(file, output_format, signing)["claim_generator_info"]
    assert (generator["name"], generator["version"]) == ("krea2-engine", engine.__version__)
    with Image.open(io.BytesIO(file)) as image, Image.open(io.BytesIO(unsigned)) as plain:
        assert image.tobytes() == plain.tobytes()
        assert read_made(image) == read_made(plain) is not None
    assert said(file) == said(unsigned)
    assert len(file) - len(unsigned) < 8000


def test_a_manifest_says_no_more_than_the_client_wants_and_knows_a_composite(signing: Signing, tmp_path: Path) -> None:
    signed = disclosure(signing, tmp_path)
    file = written("png", signed, metadata=False, picture=picture(SOME_SEEN))
    agent = {"name": "krea2-engine", "version": engine.__version__}
    assert created(file, "png", signing) == {"digitalSourceType": COMPOSITE, "softwareAgent": agent}
    assert b"fox" not in file
    assert b"Turbo" not in file


def test_a_changed_picture_is_found_out(signing: Signing, tmp_path: Path) -> None:
    file = bytearray(written("jpeg", disclosure(signing, tmp_path)))
    file[-20] ^= 1  # of the pixels
    with c2pa.Reader("image/jpeg", io.BytesIO(bytes(file)), context=c2pa.Context()) as reader:
        assert reader.get_validation_state() == "Invalid"
        failures = reader.get_validation_results()["activeManifest"]["failure"]
    assert "assertion.dataHash.mismatch" in {failure["code"] for failure in failures}


KEYS: dict[str, Callable[[], Any]] = {
    "Es384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "Es512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "Ps256": lambda: rsa.generate_private_key(65537, 2048),
}


@pytest.mark.parametrize("algorithm", KEYS)
def test_every_kind_of_key_that_c2pa_knows_signs(algorithm: str, tmp_path: Path) -> None:
    signing = certified(KEYS[algorithm]())
    file = written("webp", disclosure(signing, tmp_path))
    assert manifest(file, "webp", signing)["signature_info"]["alg"] == algorithm


def test_a_key_in_its_older_form_signs(signing: Signing, tmp_path: Path) -> None:
    key = new_key()
    older = replace(certified(key), key=key_file(key, form="TraditionalOpenSSL"))
    assert older.key.startswith(b"-----BEGIN EC")
    created(written("jpeg", disclosure(older, tmp_path)), "jpeg", older)


def test_many_threads_sign_at_once(signing: Signing, tmp_path: Path) -> None:
    signed = disclosure(signing, tmp_path)
    with ThreadPoolExecutor(4) as pool:
        files = [*pool.map(lambda number: written(FORMATS[number % 3], signed), range(12))]
    for number, file in enumerate(files):
        created(file, FORMATS[number % 3], signing)


OTHER_KEY = key_file(new_key())
UNUSABLE: dict[str, tuple[Callable[[], Signing], str, str]] = {
    "ended": (lambda: certified(days=-0.5), "c2pa_certificate", "it ended on 20"),
    "not begun": (lambda: certified(begins=0.5), "c2pa_certificate", "not valid at time of signing"),
    "for servers": (lambda: certified(usage=ExtendedKeyUsageOID.SERVER_AUTH), "c2pa_certificate", "cannot be used: "),
    "for documents": (
        lambda: certified(usage=x509.ObjectIdentifier("1.3.6.1.5.5.7.3.36")), "c2pa_certificate",
        "missing required EKU",
    ),
    "for nothing": (lambda: certified(usage=None), "c2pa_certificate", "cannot be used: "),
    "an empty file": (lambda: replace(certified(), chain=b""), "c2pa_certificate", "this file has none"),
    "no certificate": (lambda: replace(certified(), chain=b"\0\xff"), "c2pa_certificate", "this file has none"),
    "another key": (lambda: replace(certified(), key=OTHER_KEY), "c2pa_key", "another key's"),
    "no key": (lambda: replace(certified(), key=b"SECRET"), "c2pa_key", "must be a private key in PEM"),
    "a large file": (lambda: replace(certified(), key=b"SECRET" * 2**18), "c2pa_key", "at most 1048576 bytes"),
    "a password": (
        lambda: replace(certified(key := new_key()), key=key_file(key, password=b"SECRET")), "c2pa_key",
        "without a password",
    ),
    "DSA": (lambda: certified(dsa.generate_private_key(1024)), "c2pa_key", "of the curves P-256"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_cannot_sign_is_refused_at_the_start_without_a_word_of_the_key(case: str, tmp_path: Path) -> None:
    make, parameter, message = UNUSABLE[case]
    signing = make()
    with pytest.raises(ArgumentError, match=message) as raised:
        disclosure(signing, tmp_path)
    assert raised.value.parameter == parameter
    assert "SECRET" not in str(raised.value)
    assert not any(line in str(raised.value) for line in signing.key.decode(errors="replace").split() if len(line) > 20)


@pytest.mark.parametrize(("days", "soon"), [(13, True), (15, False)])
def test_a_certificate_that_ends_soon_is_warned_of_at_the_start(days: int, soon: bool, tmp_path: Path) -> None:
    options = {**DEFAULTS, "model": "demo", **certified(days=days).options(tmp_path)}
    config, _, warnings = configure(options, auto=False, workload=no_workload, tell=no_workload)
    assert config.disclosure.c2pa_key == str(tmp_path / "key.pem")
    (warned,) = warnings or ("",)
    assert warned.startswith("the C2PA certificate ends on 20") == soon


def test_a_key_that_others_can_read_is_warned_of_at_the_start(tmp_path: Path) -> None:
    options = {**DEFAULTS, "model": "demo", **certified(days=30).options(tmp_path)}
    (tmp_path / "key.pem").chmod(0o644)
    _, _, warnings = configure(options, auto=False, workload=no_workload, tell=no_workload)
    assert warnings == (f"every user of this machine can read {tmp_path / 'key.pem'}",)


def no_workload(*_: object) -> Any:
    raise AssertionError


@pytest.mark.parametrize(
    ("options", "parameter", "message"),
    [
        ({"c2pa_certificate": "x"}, "c2pa_certificate", "^c2pa_certificate needs c2pa_key$"),
        ({"c2pa_key": "x"}, "c2pa_key", "^c2pa_key needs c2pa_certificate$"),
        ({"c2pa_timestamp": "http://x"}, "c2pa_timestamp", "^c2pa_timestamp needs c2pa_certificate$"),
        ({"c2pa_certificate": "x", "c2pa_key": "y", "xmp": False}, "c2pa_certificate", "disclosure, which is off$"),
        ({"c2pa_certificate": "/no\nfile", "c2pa_key": "y"}, "c2pa_certificate", r"/no\\nfile cannot be read: No such"),
    ],
)  # fmt: skip
def test_options_that_miss_something_are_refused(options: dict[str, Any], parameter: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as raised:
        Disclosure.of(DisclosureConfig(**options))
    assert raised.value.parameter == parameter


def test_a_front_end_signs_images_and_no_previews(signing: Signing, run_folder: Path, tmp_path: Path) -> None:
    async def test() -> None:
        config: dict[str, Any] = {"disclosure": DisclosureConfig(**signing.options(tmp_path))}
        async with fake_engine(run_folder, **config) as fakes, AsyncClient(fakes.address) as client:
            result = await client.generate("a fox", steps=2)
            assert created(result.files[0], "png", signing)["softwareAgent"] == {"name": "demo"}
            assert SOURCE in (said(result.files[0]) or {})

    run(test())
