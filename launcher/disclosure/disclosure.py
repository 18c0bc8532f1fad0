"""What an operator has pictures say of where they come from, whoever asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import engine
from engine.errors import ArgumentError
from launcher.disclosure.xmp import COMPOSITE, DRAWN, packet
from launcher.messages.api_keys import others_can_read
from launcher.messages.configs import DisclosureConfig

if TYPE_CHECKING:
    from launcher.disclosure.c2pa import ManifestSigner

_SOON = timedelta(days=14)


@dataclass(frozen=True)
class Disclosure:
    """Decides what files carry. xmp: whether they say that a model drew them; signer: of a manifest that does."""

    xmp: bool = True
    signer: ManifestSigner | None = None

    @classmethod
    def of(cls, config: DisclosureConfig) -> Disclosure:
        """Make what a configuration asks for. Raises `ArgumentError` for what contradicts itself or cannot be used."""
        for needed, given in (("c2pa_certificate", "c2pa_key"), ("c2pa_key", "c2pa_certificate")):
            if getattr(config, given) is not None and getattr(config, needed) is None:
                raise ArgumentError(f"{given} needs {needed}", parameter=given)
        if config.c2pa_certificate is None or config.c2pa_key is None:
            if config.c2pa_timestamp is not None:
                raise ArgumentError("c2pa_timestamp needs c2pa_certificate", parameter="c2pa_timestamp")
            return cls(config.xmp)
        if not config.xmp:
            raise ArgumentError("c2pa_certificate needs disclosure, which is off", parameter="c2pa_certificate")
        from launcher.disclosure.c2pa import ManifestSigner

        return cls(config.xmp, ManifestSigner(config.c2pa_certificate, config.c2pa_key, config.c2pa_timestamp))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to tell whoever starts a server with it: who can read its key, and that its certificate ends soon."""
        if self.signer is None:
            return ()
        told = []
        if others_can_read(self.signer.key_file):
            told.append(f"every user of this machine can read {self.signer.key_file}")
        if self.signer.ends - datetime.now(UTC) <= _SOON:
            ends = f"{self.signer.ends:%Y-%m-%d %H:%M} UTC"
            told.append(f"the C2PA certificate ends on {ends}, and no image can be made after that")
        return tuple(told)

    def packet(self, *, composite: bool, model: str | None = None, metadata: bool = True) -> bytes | None:
        """Return XMP for a file, None for none.

        composite: whether pixels of another picture stay around what was drawn. metadata: whether it may say more than
        that, which its client decides: the model and this engine.
        """
        if not self.xmp:
            return None
        more = {"model": model, "tool": f"krea2-engine {engine.__version__}"} if metadata else {}
        return packet(_source_type(composite), **more)

    def signed(self, file: bytes, image_format: str, *, composite: bool, model: str | None, metadata: bool) -> bytes:
        """Return a file with a manifest, if there is a signer, that says what `packet` does."""
        if self.signer is None:
            return file
        named = model if metadata else None
        return self.signer.sign(file, image_format, source_type=_source_type(composite), model=named)


def _source_type(composite: bool) -> str:
    return COMPOSITE if composite else DRAWN
