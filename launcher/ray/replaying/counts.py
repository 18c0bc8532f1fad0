"""Counts what an ingress does for its requests, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics, generate_latest


class Counts:
    """Counts replays and moves of one ingress, in a registry of its own."""

    def __init__(self) -> None:
        disable_created_metrics()
        self._registry = CollectorRegistry()
        reasons = "replica_lost, replica_silent, bad_reply, or the code of an engine's error"
        replays = f"Requests sent to another engine, by why: {reasons}"
        self._replays = Counter("krea2_ingress_replays", replays, ["reason"], registry=self._registry)
        moves = "Requests sent to another engine before theirs had begun them, since it was stopped, or busy for longer"
        self._moves = Counter("krea2_ingress_moves", moves, ["reason"], registry=self._registry)
        failures = "Requests that an ingress ended with an error, its own or an engine's, by code"
        self._failures = Counter("krea2_ingress_failures", failures, ["code"], registry=self._registry)

    def replayed(self, reason: str) -> None:
        """Count a request that is sent to another engine."""
        self._replays.labels(reason).inc()

    def moved(self, reason: str) -> None:
        """Count a request that leaves an engine which has not begun it."""
        self._moves.labels(reason).inc()

    def failed(self, code: str) -> None:
        """Count a request that ends with an error."""
        self._failures.labels(code).inc()

    def render(self) -> bytes:
        """Write all in Prometheus' text format."""
        return generate_latest(self._registry)
