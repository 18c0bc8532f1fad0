"""What filters have in common that ask a URL."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from launcher.filters.protocol import Prompt, Scores, Unavailable
from launcher.filters.spec import wrong
from launcher.filters.urls.asking import Service, WrongServiceError

_HARMLESS = Prompt("a cat")
_OWN_SHARE = 0.9  # of the time for a call: to say what went wrong before the process is taken to hang


class ByUrl:
    """Has a service, and the time for a call, of which the service gets a little less.

    negative: whether negative prompts are asked about, too.
    """

    def __init__(self, service: Service, *, negative: bool = False) -> None:
        self._service, self._negative = service, negative

    @property
    def patience_s(self) -> float:
        """Seconds that a call may take."""
        return self._service.timeout_s / _OWN_SHARE

    @patience_s.setter
    def patience_s(self, seconds: float) -> None:
        self._service.timeout_s = seconds * _OWN_SHARE

    def _texts(self, prompt: Prompt) -> list[str]:
        """What is to be asked about of a prompt: no blank text, which has nothing in it, and which services refuse."""
        texts = (prompt.text, prompt.negative) if self._negative else (prompt.text,)
        return [text for text in texts if text is not None and text.strip()]


def try_out(name: str, check_prompts: Callable[[Sequence[Prompt]], Sequence[Scores]]) -> None:
    """Ask the service of the filter `name` once. Raises `ArgumentError` if it is another one than the options say; one
    that does not answer now may when it is needed, and only the log says so."""
    try:
        check_prompts([_HARMLESS])
    except WrongServiceError as error:
        raise wrong(name, str(error)) from None
    except Unavailable as error:
        print(f"filter {name}: {error}; it is asked again for each check", file=sys.stderr)
