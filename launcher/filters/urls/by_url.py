"""What filters have in common that ask a URL."""

from __future__ import annotations

from launcher.filters.urls.asking import Service

_OWN_SHARE = 0.9  # of the time for a call: to say what went wrong before the process is taken to hang


class ByUrl:
    """Has a service, and the time for a call, of which the service gets a little less."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @property
    def patience_s(self) -> float:
        return self._service.timeout_s / _OWN_SHARE

    @patience_s.setter
    def patience_s(self, seconds: float) -> None:
        self._service.timeout_s = seconds * _OWN_SHARE
