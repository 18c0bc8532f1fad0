"""What filters have in common that ask a URL."""

from __future__ import annotations

from launcher.filters.protocol import Prompt
from launcher.filters.urls.asking import Service

_OWN_SHARE = 0.9  # of the time for a call: to say what went wrong before the process is taken to hang


class ByUrl:
    """Has a service, and the time for a call, of which the service gets a little less.

    negative: whether negative prompts are asked about, too.
    """

    def __init__(self, service: Service, *, negative: bool = True) -> None:
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
