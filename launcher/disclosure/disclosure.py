"""What an operator has pictures say of where they come from, whoever asks for them."""

from __future__ import annotations

from dataclasses import dataclass

import engine
from launcher.disclosure.xmp import COMPOSITE, DRAWN, packet
from launcher.messages.configs import DisclosureConfig


@dataclass(frozen=True)
class Disclosure:
    """Decides what files carry. xmp: whether they say that a model drew them."""

    xmp: bool = True

    @classmethod
    def of(cls, config: DisclosureConfig) -> Disclosure:
        """Make what a front-end is configured for."""
        return cls(config.xmp)

    def packet(self, *, composite: bool, model: str | None = None, metadata: bool = True) -> bytes | None:
        """Return XMP for a file, None for none.

        composite: whether pixels of another picture stay around what was drawn. metadata: whether it may say more than
        that, which its client decides: the model and this engine.
        """
        if not self.xmp:
            return None
        more = {"model": model, "tool": f"krea2-engine {engine.__version__}"} if metadata else {}
        return packet(COMPOSITE if composite else DRAWN, **more)
