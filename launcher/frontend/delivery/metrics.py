"""Counts what a front-end does, in Prometheus' text format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from launcher.messages.rank_messages import DoneStep
from launcher.requests.timings import STAGES

_STEP_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_STAGE_S = (0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_TOKENS = tuple(2**power for power in range(6, 16))
_MOST_KEYS = 1000
_GAUGES = (  # name, text and labels of what is asked for when the metrics are
    ("requests_waiting", "Requests that have not begun"),
    ("requests_running", "Requests that have begun"),
    ("backlog_seconds", "Seconds of work ahead of the ranks; NaN while no speeds are known"),
    ("decode_waiting", "Images that have been denoised and wait for the decoder"),
    ("decode_running", "Images that the decoder has: one is decoded, the next ones wait behind it"),
    ("ready", "Whether the ranks answer"),
    ("token_budget", "Packed tokens that a step may have"),
    ("dropped_messages", "Messages that were not understood"),
    ("dropped_log_lines", "Lines of the log that nobody read in time"),
    ("rpc_connections", "Connections of clients over RPC"),
    ("rank_memory_bytes", "Bytes by purpose when the rank was ready, of adapters now", "rank", "purpose"),
    ("loras", "LoRAs that requests may choose"),
    ("lora_bytes", "Bytes of each rank that LoRAs take"),
)


class Metrics:
    """Holds the counters of one front-end, an attribute for each, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # a gauge beside every counter, which nobody reads
        self._registry = CollectorRegistry()
        counter, histogram = partial(Counter, registry=self._registry), partial(Histogram, registry=self._registry)
        ended = "Requests that have ended, by outcome: done, or the code of their error"
        self._requests = counter("krea2_requests", ended, ["outcome"])
        by_key = "Requests that have ended, by the name of their key, and by outcome"
        self._key_requests = counter("krea2_key_requests", by_key, ["key", "outcome"])
        self._keys: set[str] = set()
        again = "Requests that joined another or got its answer, by their idempotency key"
        self.repeated = counter("krea2_repeated_requests", again)
        self.images = counter("krea2_images", "Images sent to clients")
        self._pictures = counter("krea2_encoded_pictures", "Pictures encoded, that images begin from")
        self.previews = counter("krea2_previews", "Previews sent to clients")
        held = "Previews not sent: blocked, unavailable filters, busy with another of its image, or unaudited"
        self.held_previews = counter("krea2_held_previews", held, ["reason"])
        self.filters = FilterMetrics(self._registry)
        lines = "Lines of the audit log, by what they tell: image, preview, held, refused"
        self._audit_lines = counter("krea2_audit_lines", lines, ["event"])
        self._audit_failures = counter("krea2_audit_failures", "Lines of the audit log that could not be written")
        self.restarts = counter("krea2_restarts", "Rank groups that were lost and replaced")
        reported = "Errors of GPUs in use, by number as in nvidia-smi, and Xid"
        self.gpu_errors = counter("krea2_gpu_xid_errors", reported, ["device", "xid"])
        unused = "GPUs that are not used until the server is started again, since they failed"
        self.quarantined = Gauge("krea2_device_quarantined", unused, ["device"], registry=self._registry)
        too_large = "Steps that memory ran out in, whose images then ran one by one"
        self._too_large = counter("krea2_out_of_memory_steps", too_large)
        staged = "Seconds that a finished request spent in each stage"
        self._stages = histogram("krea2_stage_seconds", staged, ["stage"], buckets=_STAGE_S)
        parts = "Seconds that the slowest rank spent in the parts of a step"
        self._step_s = histogram("krea2_step_seconds", parts, ["part"], buckets=_STEP_S)
        self._step_tokens = histogram("krea2_step_tokens", "Packed tokens of a denoise step", buckets=_TOKENS)
        blocks = "Blocks that were run for the prompt or negative prompt of an image in a step, or were saved"
        self._blocks = counter("krea2_step_blocks", blocks, ["kind"])
        self._gauges = {
            name: Gauge(f"krea2_{name}", text, labels, registry=self._registry) for name, text, *labels in _GAUGES
        }

    def count_step(self, done: DoneStep) -> None:
        """Count a step that all ranks have executed."""
        times, tokens, pictures = done.times, done.work.tokens, len(done.step.encode)
        if times.one_by_one:
            self._too_large.inc()
        if times.encoded_tokens:
            self._step_s.labels("encode").observe(times.encode_s)
        if pictures:
            self._pictures.inc(pictures)
            self._step_s.labels("encode_picture").observe(times.picture_s)
        if tokens:
            self._step_s.labels("denoise").observe(times.denoise_s)
            self._step_tokens.observe(tokens)
        if done.did is not None:
            self._blocks.labels("computed").inc(done.did.blocks)
            self._blocks.labels("saved").inc(done.did.saved)

    def count_outcome(self, outcome: str, caller: str) -> None:
        """Count a request that has ended or was refused: `done`, or the code of its error. caller: the name of its key.

        Names beyond the first `_MOST_KEYS` are counted together, whatever comes and goes in the files of keys.
        """
        if len(self._keys) < _MOST_KEYS:
            self._keys.add(caller)
        self._requests.labels(outcome).inc()
        self._key_requests.labels(caller if caller in self._keys else "other", outcome).inc()

    def audited(self, event: str) -> None:
        """Count a line of the audit log by its event, or one that `failed`."""
        if event == "failed":
            self._audit_failures.inc()
        else:
            self._audit_lines.labels(event).inc()

    def count_stages(self, timings: dict[str, float]) -> None:
        """Count how long a request that has all its images spent in each stage, in seconds."""
        for stage in STAGES:
            self._stages.labels(stage).observe(timings[stage])

    def render(self, rank_memory: Sequence[dict[str, int]], *, lora_bytes: int = 0, **gauges: float | None) -> bytes:
        """Write all in Prometheus' text format. rank_memory: bytes by purpose, rank by rank; gauges: all others, None
        for one that is not known."""
        for name, value in {**gauges, "lora_bytes": lora_bytes}.items():
            self._gauges[name].set(math.nan if value is None else value)
        for rank, purposes in enumerate(rank_memory):
            if "adapters" in purposes:  # which it loads when it is ready
                purposes = purposes | {"adapters": lora_bytes}
            for purpose, size in purposes.items():
                self._gauges["rank_memory_bytes"].labels(rank, purpose).set(size)
        return generate_latest(self._registry)


class FilterMetrics:
    """Counts what content filters do."""

    def __init__(self, registry: CollectorRegistry) -> None:
        what = ["filter", "kind"]
        verdicts = (
            "Prompts and pictures that a filter has judged, by what its scores came to: allow, log, blur or block"
        )
        self._verdicts = Counter("krea2_filter_verdicts", verdicts, [*what, "action"], registry=registry)
        took = "Seconds that a filter's check took, waiting for its turn included"
        self._seconds = Histogram("krea2_filter_seconds", took, what, buckets=_STEP_S, registry=registry)
        failures = "Checks that a filter has failed, by why"
        self._failures = Counter("krea2_filter_failures", failures, ["filter", "reason"], registry=registry)

    def judged(self, label: str, kind: str, action: str) -> None:
        """Count what a filter's scores of one thing came to."""
        self._verdicts.labels(label, kind, action).inc()

    def took(self, label: str, kind: str, seconds: float) -> None:
        """Count how long a filter's check took."""
        self._seconds.labels(label, kind).observe(seconds)

    def failed(self, label: str, reason: str) -> None:
        """Count a check that has failed."""
        self._failures.labels(label, reason).inc()
