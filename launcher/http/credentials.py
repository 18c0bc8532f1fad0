"""The API key that a request offers: as a bearer, or as clients of A1111 do, which know a user and a password."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

from launcher.http.answers.errors import is_automatic1111s

NEEDED = "an API key is needed: send Authorization: Bearer KEY"
NEEDED_AS_PASSWORD = f"{NEEDED}, or the key as the password of any user"


def offered_keys(headers: Mapping[str, str], path: str) -> list[bytes]:
    """Give what may be the key, none if there is nothing of the kind. A user without a password may be one, too."""
    scheme, _, sent = headers.get("authorization", "").partition(" ")
    offered = sent.strip().encode("latin-1")
    if scheme.lower() == "bearer":
        return [offered]
    if scheme.lower() != "basic" or not is_automatic1111s(path):
        return []
    try:
        user, _, password = base64.b64decode(offered, validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return []
    return [password or user]
