"""What the files of each folder of the benchmarks may import: see `tests/floors.py`."""

from __future__ import annotations

# A command may import what all share, and two may import what they take of another.
_SHARED = {"bench.measure", "bench.survive", "bench.engines"}
BENCH_FLOORS: dict[str, set[str]] = {
    "bench.measure": set(),
    "bench.survive": {"bench.measure"},
    "bench.engines": {"bench.measure", "bench.survive"},
    "bench.disclosure": _SHARED,
    **dict.fromkeys(("bench.load", "bench.machine", "bench.shared_gpu", "bench.vs_diffusers"), _SHARED),
    "bench.adherence.step_caching": _SHARED,
    "bench.adherence": {*_SHARED, "bench.adherence.step_caching"},
    **dict.fromkeys(("bench.image", "bench.kernel_tests", "bench.kernels", "bench.report"), _SHARED),
    **dict.fromkeys(("bench.scaling", "bench.serve", "bench.step", "bench.throughput"), _SHARED),
    "bench.cluster.simulation": _SHARED,
    "bench.cluster": {*_SHARED, "bench.serve", "bench.cluster.simulation"},
    "bench.words": {*_SHARED, "bench.serve"},
    "bench.fidelity": {*_SHARED, "bench.kernels"},
    "bench.summary": {*_SHARED, "bench.report"},
    "bench.verify.subject": _SHARED,
    "bench.verify.oracle": {*_SHARED, "bench.verify.subject"},
    "bench.verify": {*_SHARED, "bench.verify.subject", "bench.verify.oracle"},
}
