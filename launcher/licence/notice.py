"""The licences of the weights and of the software, for people and programs. The agreement's own text is not here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SOFTWARE = "Apache-2.0"
USE_POLICY = "https://www.krea.ai/krea-2-use-policy"


@dataclass(frozen=True)
class Licence:
    """Under which weights may be used. url: where its text is. use_policy: where what it forbids is, None if nothing is
    known to be."""

    name: str
    version: str
    url: str
    use_policy: str | None = None


KREA_2 = Licence(
    "Krea 2 Community License",
    "1, of 22 June 2026",
    "https://huggingface.co/krea/Krea-2-Turbo/blob/main/LICENSE.pdf",
    USE_POLICY,
)
DEMO = Licence("Apache License", "2.0", "https://www.apache.org/licenses/LICENSE-2.0")


def licence_of(demo: Path | None) -> Licence:
    """Say which licence weights have: those of the demo, if that is its folder, or Krea 2's, as all others have."""
    return KREA_2 if demo is None else DEMO


def told_unfiltered(demo: Path | None, filters: Sequence[object]) -> str | None:
    """Say in a line that weights are served without what their licence asks for, and what to do, if that is so."""
    if filters or licence_of(demo) is not KREA_2:
        return None
    return (
        f"Krea 2 is served without a content filter, which the {KREA_2.name} (4.2) asks of whoever serves it: give "
        "--filter, as --filter words, and see docs/safety.md"
    )


@cache
def notice() -> str:
    """Read `NOTICE`."""
    return Path(__file__).with_name("NOTICE").read_text("utf-8")
